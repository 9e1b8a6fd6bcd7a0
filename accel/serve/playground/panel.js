// One explanation on the page: a model, a class, the mask on the image, and what it cost.

import { draw, partColour, seenBox } from "./drawing.js";
import { download } from "./download.js";

const LONGEST = 1024; // pixels of a canvas
const template = document.getElementById("panel");
let made = 0;

/** A share in per cent; what is not quite nothing does not read as nothing. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  return share >= 0.9995 ? `${share < 1 ? "> 99.9" : "100"} %` : `${(100 * share).toFixed(1)} %`;
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export class Panel {
  #canvas;
  #veil;
  #answer = null;
  #image = null;
  #look;
  #frame = 0;

  /** card: of the model. look(): how to draw, {view, strength, colours}. */
  constructor(card, look) {
    this.card = card;
    this.#look = look;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.#canvas = this.element.querySelector("canvas");
    this.#veil = this.element.querySelector(".veil");
    const heading = this.element.querySelector("h3");
    heading.id = `panel-${(made += 1)}`;
    heading.textContent = card.name;
    heading.title = card.title;
    this.element.setAttribute("aria-labelledby", heading.id);
    const downloads = this.element.querySelector(".downloads");
    downloads.setAttribute("aria-label", `Download the mask of ${card.name}`);
    downloads.addEventListener("click", ({ target }) => {
      const kind = target.closest("button")?.dataset.download;
      if (kind && this.#answer) download(kind, this.#answer, this.card);
    });
    new ResizeObserver(() => this.redraw()).observe(this.#canvas);
  }

  get answer() {
    return this.#answer;
  }

  /** Where it stands if the panels make a table. */
  place(row, column) {
    this.element.style.setProperty("--row", row + 1);
    this.element.style.setProperty("--column", column + 1);
  }

  /** A new image, of which nothing is known yet. */
  begin(image) {
    if (image === this.#image) return;
    this.#image = image;
    this.#answer = null;
    const { photo } = image;
    this.#canvas.style.setProperty("--ratio", photo.width / photo.height);
    this.element.querySelector(".about").textContent = "";
    for (const number of this.element.querySelectorAll("dd")) number.textContent = "–";
    for (const button of this.element.querySelectorAll(".downloads button")) button.disabled = true;
    this.#canvas.setAttribute("aria-label", `${image.name}, not explained yet`);
    this.redraw();
    this.say("");
  }

  /** Say something over the picture; empty to take it away. */
  say(text) {
    this.#veil.textContent = text;
    this.#veil.hidden = !text;
  }

  /**
   * Show an explanation.
   * answer: {image, masks: {values, shape}, probabilities, target, wanted: class or null, area, queue, compute, trip}.
   */
  show(answer) {
    this.#answer = answer;
    this.say("");
    this.#drawNow(); // not with the next frame, so that it is seen in it
  }

  /** Draw again in the next frame. */
  redraw() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#drawNow());
  }

  #drawNow() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const image = this.#image;
    const shown = this.#canvas.clientWidth;
    if (!image || !shown) return;
    const { photo } = image;
    const density = Math.min(2, devicePixelRatio || 1);
    const longest = Math.min(LONGEST, shown * density * Math.max(1, photo.height / photo.width));
    const scale = longest / Math.max(photo.width, photo.height);
    const width = Math.max(1, Math.round(photo.width * scale));
    const height = Math.max(1, Math.round(photo.height * scale));
    if (this.#canvas.width !== width || this.#canvas.height !== height) Object.assign(this.#canvas, { width, height });
    if (!this.#answer) {
      photo.paint(this.#canvas.getContext("2d"), width, height);
      return;
    }
    const box = seenBox(this.card.image, photo.height, photo.width);
    const line = Math.max(1, Math.round(width / shown));
    draw(this.#canvas, photo, this.#answer.masks, box, { ...this.#look(), line });
    this.#tell();
  }

  #tell() {
    const { image, masks, probabilities, target, wanted, queue, compute, trip } = this.#answer;
    const { classes, class_specific: specific, forwards } = this.card;
    const predicted = highest(probabilities);
    const areas = partAreas(masks);
    const numbers = {
      area: areas.map((area) => percent(area)).join(" + ").replaceAll(" % +", " +"),
      forwards: `${forwards.toFixed(2)} forwards`,
      compute: milliseconds(compute),
      queue: milliseconds(queue),
      trip: milliseconds(trip),
    };
    for (const [name, text] of Object.entries(numbers)) {
      this.element.querySelector(`[data-number=${name}]`).textContent = text;
    }
    const about = this.element.querySelector(".about");
    const name = document.createElement("b");
    name.textContent = classes[target];
    about.replaceChildren(name, ` ${percent(probabilities[target])}`);
    if (target !== predicted) about.append(`, predicted: ${classes[predicted]} ${percent(probabilities[predicted])}`);
    if (wanted !== null && !specific) about.append("; explains the predicted class only");
    else if (wanted === -1) about.append("; does not know the class that was asked for");
    if (areas.length > 1) about.append(partLegend(areas.length));
    this.#canvas.setAttribute("aria-label", `${this.#look().words} for ${classes[target]} by ${this.card.name}, on ${image.name}`);
    for (const button of this.element.querySelectorAll(".downloads button")) button.disabled = false;
  }

  /** One sentence about what is shown. */
  sentence() {
    const { masks, target } = this.#answer;
    const areas = partAreas(masks).map((area) => percent(area));
    return `${this.card.name}: mask for ${this.card.classes[target]}, area ${areas.join(" and ")}.`;
  }
}

function partLegend(count) {
  const legend = document.createElement("span");
  legend.className = "part-legend";
  for (let part = 0; part < count; part++) {
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${partColour(part).join()})`;
    legend.append(swatch, `part ${part + 1} `);
  }
  return legend;
}

export const highest = (values) => values.reduce((best, value, index) => (value > values[best] ? index : best), 0);

function partAreas({ values, shape: [count, height, width] }) {
  const each = height * width;
  return Array.from({ length: count }, (_, part) => {
    let sum = 0;
    for (let index = part * each; index < (part + 1) * each; index++) sum += values[index];
    return sum / each;
  });
}
