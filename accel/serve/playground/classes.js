// The classes of an answer: the most probable ones as bars, all of them in a list that can be searched.

import { highest, percent } from "./panel.js";

const BARS = 5;
const SHOWN = 50; // hits of a search
const FEW = 12; // classes that need no search

/**
 * onChoose(classes): which classes to explain, at most two; null stands for the predicted one.
 */
export class Classes {
  #card = document.getElementById("classes");
  #bars = document.getElementById("bars");
  #note = document.getElementById("classes-note");
  #onChoose;
  #probabilities = null;
  #names = [];
  #chosen = [null];
  #free = true;
  #search;

  constructor(onChoose) {
    this.#onChoose = onChoose;
    this.#search = new Search((index) => this.#choose([index]));
    this.#bars.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      const index = Number(button.dataset.index);
      if (button.dataset.beside === undefined) this.#choose([index]);
      else this.#choose(this.#explained().includes(index) ? this.#explained().filter((other) => other !== index) : [this.#explained()[0], index]);
    });
  }

  /** Another image, of which nothing is known yet: its predicted class is to be explained. */
  begin() {
    this.#chosen = [null];
    this.#show();
    this.#card.classList.add("old");
  }

  /** There is no answer. */
  forget() {
    this.#probabilities = null;
    this.#search.answered(null);
    this.#bars.replaceChildren();
    document.getElementById("predicted").textContent = "–";
    document.getElementById("probability").textContent = "";
    this.#card.classList.remove("old");
  }

  get chosen() {
    return this.#chosen;
  }

  /** names: of all classes; free: any of them can be explained. */
  about(names, free) {
    this.#free = free;
    this.#names = names;
    this.#note.textContent = free
      ? "Choose a class to see what speaks for it; + adds a second."
      : "This explainer is about the predicted class only.";
    this.#search.about(names, free);
    this.#show();
  }

  /** What a model answered. */
  answered(probabilities) {
    this.#card.classList.remove("old");
    const known = this.#probabilities;
    if (known?.length === probabilities.length && known.every((share, index) => share === probabilities[index])) return;
    this.#probabilities = probabilities;
    this.#search.answered(probabilities);
    this.#show();
  }

  #explained() {
    const predicted = highest(this.#probabilities);
    return this.#chosen.map((index) => index ?? predicted);
  }

  #choose(classes) {
    if (!this.#probabilities) return;
    this.#chosen = classes;
    this.#show();
    this.#onChoose(classes);
  }

  #show() {
    if (!this.#probabilities || this.#probabilities.length !== this.#names.length) return;
    const order = Array.from(this.#probabilities.keys()).sort((a, b) => this.#probabilities[b] - this.#probabilities[a]);
    document.getElementById("predicted").textContent = this.#names[order[0]];
    document.getElementById("probability").textContent = percent(this.#probabilities[order[0]]);
    const explained = this.#free ? this.#explained() : [order[0]];
    const shown = order.slice(0, BARS);
    shown.push(...explained.filter((index) => !shown.includes(index)));
    while (this.#bars.children.length > shown.length) this.#bars.lastChild.remove();
    while (this.#bars.children.length < shown.length) this.#bars.append(bar());
    shown.forEach((index, place) => this.#fill(this.#bars.children[place], index, explained));
  }

  #fill(row, index, explained) {
    const share = this.#probabilities[index];
    const [choose, beside] = row.querySelectorAll("button");
    const on = explained.includes(index);
    choose.querySelector(".name").textContent = this.#names[index];
    choose.querySelector(".number").textContent = percent(share);
    choose.querySelector("i").style.setProperty("--share", share);
    choose.dataset.index = beside.dataset.index = index;
    choose.disabled = !this.#free;
    choose.setAttribute("aria-pressed", on);
    choose.title = this.#free ? `Explain ${this.#names[index]}` : "";
    beside.hidden = !this.#free;
    beside.disabled = on && explained.length === 1;
    beside.textContent = on && explained.length > 1 ? "−" : "+";
    const label = on && explained.length > 1 ? `Explain ${this.#names[index]} no longer` : `Explain ${this.#names[index]} beside the other class`;
    beside.setAttribute("aria-label", label);
    beside.title = label;
  }
}

function bar() {
  const row = document.createElement("li");
  row.innerHTML =
    '<button type="button" class="bar"><span class="name"></span><span class="number"></span><i></i></button>' +
    '<button type="button" class="beside" data-beside></button>';
  return row;
}

/** A text field with a list of the classes that contain the text. */
class Search {
  #input = document.getElementById("search");
  #list = document.getElementById("found");
  #onChoose;
  #names = [];
  #probabilities = null;
  #active = -1;

  constructor(onChoose) {
    this.#onChoose = onChoose;
    this.#input.addEventListener("input", () => this.#open());
    this.#input.addEventListener("click", () => this.#open());
    this.#input.addEventListener("blur", () => this.#close());
    this.#input.addEventListener("keydown", (event) => this.#onKey(event));
    this.#list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    this.#list.addEventListener("click", ({ target }) => this.#take(target.closest("[role=option]")));
  }

  about(names, free) {
    this.#names = names;
    document.getElementById("combo").hidden = !free || names.length <= BARS;
    this.#input.placeholder = names.length > FEW ? `Search ${names.length} classes …` : "Another class …";
  }

  answered(probabilities) {
    this.#probabilities = probabilities;
  }

  #open() {
    const text = this.#input.value.trim().toLowerCase();
    const hits = this.#names.map((name, index) => ({ name, index })).filter(({ name }) => name.toLowerCase().includes(text));
    const better = ({ index }) => this.#probabilities?.[index] ?? 0;
    hits.sort((a, b) => better(b) - better(a) || a.index - b.index);
    const options = hits.slice(0, SHOWN).map(({ name, index }, place) => {
      const option = document.createElement("li");
      Object.assign(option, { id: `found-${place}`, textContent: name });
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.dataset.index = index;
      const share = document.createElement("span");
      share.className = "number";
      share.textContent = this.#probabilities ? percent(this.#probabilities[index]) : "";
      option.append(share);
      return option;
    });
    if (hits.length === 0 || hits.length > SHOWN) {
      const rest = document.createElement("li");
      rest.setAttribute("role", "presentation");
      rest.className = "rest";
      rest.textContent = hits.length ? `and ${hits.length - SHOWN} more; type to find them` : "no class is called so";
      options.push(rest);
    }
    this.#list.replaceChildren(...options);
    this.#list.hidden = false;
    this.#input.setAttribute("aria-expanded", "true");
    this.#activate(text && hits.length ? 0 : -1);
  }

  #close() {
    this.#list.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#input.removeAttribute("aria-activedescendant");
  }

  #activate(place) {
    const options = this.#list.querySelectorAll("[role=option]");
    options[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = place;
    const option = options[place];
    if (!option) return this.#input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    this.#input.setAttribute("aria-activedescendant", option.id);
  }

  #take(option) {
    if (!option) return;
    this.#input.value = "";
    this.#close();
    this.#onChoose(Number(option.dataset.index));
  }

  #onKey(event) {
    const options = this.#list.querySelectorAll("[role=option]");
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.#list.hidden) this.#open();
      else this.#activate((this.#active + steps[event.key] + options.length) % Math.max(1, options.length));
    } else if (event.key === "Enter" && !this.#list.hidden) {
      event.preventDefault();
      this.#take(options[this.#active]);
    } else if (event.key === "Escape") {
      if (this.#list.hidden) this.#input.value = "";
      this.#close();
    }
  }
}
