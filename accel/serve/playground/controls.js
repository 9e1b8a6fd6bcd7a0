// The switches and sliders above the pictures: how they are drawn, and which masks are asked for.

import { percent } from "./panel.js";

const RESOLUTIONS = [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
const MOVING = 512; // pixels of a mask, at most, as long as a slider moves
const RESTS = 250; // ms after which it does not
const WORDS = { overlay: "Overlay", mask: "Mask", kept: "What is kept" };
const element = (id) => document.getElementById(id);

/** How masks are drawn. onChange(): draw them again. */
export class Look {
  #colours;

  constructor(colours, onChange) {
    this.#colours = colours;
    element("views").addEventListener("change", onChange);
    element("strength").addEventListener("input", () => {
      element("strength-value").textContent = `${element("strength").value} %`;
      onChange();
    });
    const legend = element("legend").getContext("2d");
    const image = new ImageData(256, 1);
    for (let level = 0; level < 256; level++) image.data.set([...colours.subarray(3 * level, 3 * level + 3), 255], 4 * level);
    legend.putImageData(image, 0, 0);
  }

  get now() {
    const view = document.querySelector("[name=view]:checked").value;
    return { view, words: WORDS[view], strength: element("strength").value / 100, colours: this.#colours };
  }
}

/** Which masks are asked for where a bundle holds them as functions. onChange(): ask again. */
export class Query {
  #range = [0.01, 0.9];
  #moving = 0;

  constructor(onChange) {
    const resolution = element("resolution");
    Object.assign(resolution, { min: 0, max: RESOLUTIONS.length - 1, value: RESOLUTIONS.indexOf(256) });
    for (const id of ["area", "resolution", "parts"]) {
      element(id).addEventListener("input", () => {
        clearTimeout(this.#moving);
        this.#moving = setTimeout(() => {
          this.#moving = 0;
          onChange();
        }, RESTS);
        this.#tell();
        onChange();
      });
    }
  }

  /** The ticked models' cards. */
  about(cards) {
    const functions = cards.filter(({ areas }) => areas.length);
    const parts = Math.max(1, ...functions.map((card) => card.parts));
    for (const slider of document.querySelectorAll(".query")) slider.hidden = !functions.length;
    document.querySelector(".slider.parts").hidden = parts < 2;
    element("parts").max = parts;
    if (!functions.length) return;
    const areas = functions.flatMap((card) => card.areas);
    const range = [Math.max(0.01, Math.min(...areas) / 3), Math.min(0.9, Math.max(...areas) * 2)];
    if (range.join() !== this.#range.join()) {
      const before = this.#range[2] ?? areas[Math.floor((areas.length - 1) / 2)];
      this.#range = [...range, before];
      this.area = before;
    }
    this.#tell();
  }

  get area() {
    const [low, high] = this.#range;
    const area = low * (high / low) ** (element("area").value / element("area").max);
    return Number(area.toPrecision(3));
  }

  set area(area) {
    const [low, high] = this.#range;
    element("area").value = Math.round((element("area").max * Math.log(area / low)) / Math.log(high / low));
  }

  /** Masks without a common pixel that a model is asked for. */
  parts(card) {
    return Math.min(card.parts, Number(element("parts").value));
  }

  /** What to ask a model, {area, parameters}. */
  of(card) {
    const [height, width] = card.mask_size;
    if (!card.areas.length) return { area: null, parameters: {} };
    const longest = Math.min(RESOLUTIONS[element("resolution").value], this.#moving ? MOVING : Infinity);
    const scale = longest / Math.max(height, width);
    const size = `${Math.max(1, Math.round(height * scale))}x${Math.max(1, Math.round(width * scale))}`;
    const parts = this.parts(card);
    return { area: this.area, parameters: { size, ...(parts > 1 && { parts }) } };
  }

  #tell() {
    const longest = RESOLUTIONS[element("resolution").value];
    const texts = {
      area: percent(this.area),
      resolution: `${longest} px`,
      parts: element("parts").value,
    };
    for (const [id, text] of Object.entries(texts)) element(`${id}-value`).textContent = text;
    element("area").setAttribute("aria-valuetext", `${percent(this.area)} of the image`);
    element("resolution").setAttribute("aria-valuetext", `${longest} pixels`);
  }
}
