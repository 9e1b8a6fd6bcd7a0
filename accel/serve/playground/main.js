// The page: an image goes to every ticked model, and each answers with a mask for every chosen class.

import { Classes } from "./classes.js";
import { Look, Query } from "./controls.js";
import { Photo } from "./drawing.js";
import { Latest } from "./latest.js";
import { highest, Panel, percent } from "./panel.js";
import { colourTable, infer, keepKey, modelCards, sampleImage } from "./protocol.js";

const MOST_TICKED = 3; // models that are ticked at the start
const LARGE = 2e6; // pixels from which on decoding a file takes longer than what follows
const element = (id) => document.getElementById(id);

let explainers = [];
let image = null;
let look;
let sampled = "";

const query = new Query(() => ask());
const classes = new Classes(() => ask());

/** A model on this page, with a panel for each class that is explained. */
class Explainer {
  panels = [];
  ticked = false;
  #seen = { image: null, pixels: null };
  #asked = "";

  constructor(card) {
    this.card = card;
    this.latest = new Latest(
      (wish, signal) => this.#explain(wish, signal),
      (error, seconds) => this.#trouble(error, seconds),
    );
  }

  /** The classes to explain as this model counts them: null for the predicted one, −1 for one that it does not know. */
  targets() {
    if (!this.card.class_specific) return [null];
    const names = lead().card.classes;
    return classes.chosen.map((index) => {
      if (index === null || this.card.classes[index] === names[index]) return index;
      return this.card.classes.indexOf(names[index]);
    });
  }

  /** Make as many panels as there are classes. */
  arrange() {
    const count = this.ticked ? this.targets().length : 0;
    while (this.panels.length > count) this.panels.pop().element.remove();
    while (this.panels.length < count) this.panels.push(new Panel(this.card, () => look.now));
    if (image) for (const panel of this.panels) panel.begin(image);
  }

  ask(drop) {
    if (!this.ticked || !image) {
      this.#asked = "";
      return this.latest.stop();
    }
    const wish = { targets: this.targets(), chosen: classes.chosen, ...query.of(this.card) };
    const asked = JSON.stringify(wish);
    if (asked === this.#asked && !drop) return; // as where the area changes, which is nothing to this model
    this.#asked = asked;
    this.latest.ask({ image, ...wish }, { drop });
  }

  /** Explain as wished, in one request where the model takes several classes at once. */
  async #explain(wish, signal) {
    const together = this.card.several_targets ? [wish.targets] : wish.targets.map((target) => [target]);
    let place = 0;
    const shown = together.map(async (targets) => {
      const panels = this.panels.slice(place, (place += targets.length));
      const answer = await infer(this.card.name, this.#request(wish, targets), signal);
      if (signal.aborted || wish.image !== image) return;
      const { probabilities, target_class: target, mask, model_image: seen } = answer.outputs;
      if (seen) this.#seen = { image: wish.image, pixels: seen };
      if (this === lead()) classes.answered(probabilities.data);
      const [, masks, height, width] = mask.shape;
      const count = masks / targets.length; // of each panel
      panels.forEach((panel, index) =>
        panel.show({
          ...answer,
          image: wish.image,
          masks: {
            values: mask.data.subarray(index * count * height * width, (index + 1) * count * height * width),
            shape: [count, height, width],
          },
          probabilities: probabilities.data,
          target: target.data[Math.min(index, target.data.length - 1)],
          wanted: this.card.class_specific ? targets[index] : wish.chosen[0],
          area: wish.area,
        }),
      );
    });
    try {
      await Promise.all(shown);
    } catch (error) {
      if (this.#seen.pixels && error.status === 400) this.#seen = { image: null, pixels: null };
      throw error;
    }
    announce();
  }

  #request(wish, targets) {
    const inputs = [this.#input(wish.image)];
    if (targets.some((target) => target !== null)) {
      const data = BigInt64Array.from(targets, (target) => BigInt(target ?? -1));
      inputs.push({ name: "target", datatype: "INT64", shape: this.card.several_targets ? [1, data.length] : [1], data });
    }
    if (wish.area !== null) {
      inputs.push({ name: "areas", datatype: "FP32", shape: [1], data: Float32Array.of(wish.area) });
    }
    const outputs = ["probabilities", "target_class", "mask"];
    if (inputs[0].datatype === "BYTES" && this.#pixelsPay(wish.image)) outputs.push("model_image");
    return { inputs, outputs, parameters: wish.parameters };
  }

  /** The image as a file, or what the server made of the file, if it said so before: that need not be decoded again. */
  #input(asked) {
    if (this.#seen.image !== asked) return { name: "encoded_image", datatype: "BYTES", shape: [1], data: asked.bytes };
    return { name: "image", datatype: "UINT8", ...this.#seen.pixels };
  }

  #pixelsPay({ bytes, photo }) {
    const [height, width] = this.card.image.size;
    return !this.card.image.any_size && (height * width * 3 <= bytes.length || photo.width * photo.height > LARGE);
  }

  #trouble(error, seconds) {
    if (seconds === null) this.#asked = "";
    if (seconds === null && this === lead() && !this.panels.some((panel) => panel.answer)) classes.forget();
    if (error.status === 401) return wantKey();
    const text = error.message.replace(/\.$/, "");
    const said = seconds === null ? `${text}.` : `${text}; trying again …`;
    for (const panel of this.panels) panel.say(said);
    tell(`${this.card.name}: ${said}`);
  }
}

const ticked = () => explainers.filter((explainer) => explainer.ticked);
const lead = () => ticked()[0] ?? explainers[0];

/** Ask every ticked model; drop: for another image than before. */
function ask({ drop = false } = {}) {
  arrange();
  for (const explainer of explainers) explainer.ask(drop);
}

/** Bring the page in line with what is ticked and chosen. */
function arrange() {
  for (const explainer of explainers) explainer.arrange();
  const models = ticked();
  const rows = Math.max(0, ...models.map(({ panels }) => panels.length));
  const wanted = [];
  for (let row = 0; row < rows; row++) {
    models.forEach(({ panels }, column) => {
      if (!panels[row]) return;
      panels[row].place(row, column);
      wanted.push(panels[row].element);
    });
  }
  const shown = element("panels");
  shown.classList.toggle("paired", rows > 1 && models.length > 1);
  shown.style.setProperty("--models", models.length);
  wanted.forEach((panel, index) => shown.children[index] !== panel && shown.insertBefore(panel, shown.children[index] ?? null));
  element("nothing").hidden = wanted.length > 0;
  const coloured = look.now.view !== "kept" && models.some(({ card }) => query.parts(card) === 1);
  element("scale").classList.toggle("idle", !coloured);
}

/** After another choice of models. */
function onModels() {
  const cards = ticked().map(({ card }) => card);
  query.about(cards);
  const { card } = lead();
  classes.about(card.classes, card.class_specific);
  void offerSamples(card);
  ask();
}

async function useImage(file, name, sample = null) {
  try {
    const [bytes, photo] = await Promise.all([file.arrayBuffer(), Photo.read(file)]);
    image = { name, bytes: new Uint8Array(bytes), photo };
  } catch {
    trouble(`“${name}” is not an image that can be shown here; JPEG, PNG, WebP, GIF and BMP files are.`);
    return;
  }
  trouble("");
  const side = 112;
  const thumb = element("thumb");
  const scale = side / Math.max(image.photo.width, image.photo.height);
  thumb.width = Math.max(1, Math.round(image.photo.width * scale));
  thumb.height = Math.max(1, Math.round(image.photo.height * scale));
  image.photo.paint(thumb.getContext("2d"), thumb.width, thumb.height);
  thumb.hidden = false;
  element("image-name").textContent = `${name}, ${image.photo.width} × ${image.photo.height}`;
  for (const button of element("samples").children) button.setAttribute("aria-pressed", button === sample);
  classes.begin();
  ask({ drop: true });
}

async function offerSamples(card) {
  if (sampled === card.name) return;
  sampled = card.name;
  const files = await Promise.all(Array.from({ length: card.samples }, (_, index) => sampleImage(card.name, index)));
  if (sampled !== card.name) return;
  const buttons = files.map((file, index) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const picture = Object.assign(new Image(48, 48), { src: URL.createObjectURL(file), alt: `Sample ${index + 1}` });
    button.setAttribute("aria-pressed", "false");
    button.append(picture);
    button.addEventListener("click", () => useImage(file, `sample ${index + 1}`, button));
    return button;
  });
  for (const old of element("samples").querySelectorAll("img")) URL.revokeObjectURL(old.src);
  element("samples").replaceChildren(...buttons);
  if (!image && files.length) await useImage(files[0], "sample 1", buttons[0]);
}

function listModels(cards) {
  const first = cards[0].classes.join();
  explainers = cards.map((card) => new Explainer(card));
  for (const explainer of explainers) {
    explainer.ticked = ticked().length < MOST_TICKED && explainer.card.classes.join() === first;
  }
  const rows = explainers.map((explainer) => {
    const { card } = explainer;
    const row = document.createElement("label");
    row.className = "model";
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: explainer.ticked, value: card.name });
    box.addEventListener("change", () => {
      explainer.ticked = box.checked;
      onModels();
    });
    const name = Object.assign(document.createElement("span"), { textContent: card.name });
    const method = Object.assign(document.createElement("span"), { className: "soft small", textContent: card.method.toUpperCase() });
    row.append(box, name, method);
    row.title = `${card.title}; ${card.engine}, ${card.precision}`;
    return row;
  });
  for (const old of element("models").querySelectorAll("label")) old.remove();
  element("models").append(...rows);
}

function trouble(text) {
  element("trouble").textContent = text;
  element("trouble").hidden = !text;
}

let saying = 0;

/** Tell those who do not see the page; of many things in a short time, the last. */
function tell(text) {
  clearTimeout(saying);
  saying = setTimeout(() => (element("live").textContent = text), 400);
}

function announce() {
  const panels = ticked().flatMap((explainer) => explainer.panels).filter((panel) => panel.answer);
  const answer = lead().panels[0]?.answer;
  if (!answer) return;
  const best = highest(answer.probabilities);
  const said = panels.map((panel) => panel.sentence()).join(" ");
  tell(`Predicted: ${lead().card.classes[best]}, ${percent(answer.probabilities[best])}. ${said}`);
}

function wantKey() {
  for (const { latest } of explainers) latest.stop();
  if (!element("key-form").hidden) return;
  if (element("key").value) element("key-note").textContent = "The server does not accept this key.";
  element("key-form").hidden = false;
  element("key").focus();
}

function listenForImages() {
  const first = (files) => files.length && useImage(files[0], files[0].name || "pasted image");
  element("file").addEventListener("change", ({ target }) => {
    first(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  addEventListener("paste", ({ clipboardData }) => first(clipboardData.files));
  let inside = 0;
  const mark = (step) => {
    inside = Math.max(0, inside + step);
    document.body.classList.toggle("dropping", inside > 0);
  };
  addEventListener("dragenter", () => mark(1));
  addEventListener("dragleave", () => mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-inside);
    if (event.dataTransfer.files.length) first(event.dataTransfer.files);
    else trouble("Drop a file; a picture of another page has to be saved first, or copied and pasted.");
  });
}

async function start() {
  try {
    const cards = await modelCards();
    if (!cards.length) return trouble("No model is ready; load the page again later.");
    element("key-form").hidden = true;
    document.body.classList.remove("starting");
    listModels(cards);
    trouble("");
    onModels();
  } catch (error) {
    if (error.status === 401) return wantKey();
    trouble(`${error.message}; trying again …`);
    setTimeout(start, 2000);
  }
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(element("key").value);
  element("key-form").hidden = true;
  void start();
});
listenForImages();
look = new Look(await colourTable(), () => {
  arrange();
  for (const { panels } of explainers) for (const panel of panels) panel.redraw();
});
void start();
