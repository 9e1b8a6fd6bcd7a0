// Of many wishes only the newest matters: one is worked on, and the newest of those that come meanwhile is next.

/**
 * work(wish, signal): does what is wished.
 * onTrouble(error, again): it failed; again: seconds after which it is tried once more, or null.
 */
export class Latest {
  #work;
  #onTrouble;
  #next = null;
  #running = false;
  #abort = null;

  constructor(work, onTrouble) {
    this.#work = work;
    this.#onTrouble = onTrouble;
  }

  get busy() {
    return this.#running;
  }

  /** Wish for something. drop: what is being worked on is of no use any more, as after a change of the image. */
  ask(wish, { drop = false } = {}) {
    this.#next = wish;
    if (drop) this.#abort?.abort();
    if (!this.#running) this.#run();
  }

  /** Wish for nothing. */
  stop() {
    this.#next = null;
    this.#abort?.abort();
  }

  async #run() {
    this.#running = true;
    for (let failures = 0; this.#next !== null; ) {
      const wish = this.#next;
      this.#next = null;
      this.#abort = new AbortController();
      const { signal } = this.#abort;
      try {
        await this.#work(wish, signal);
        failures = 0;
      } catch (error) {
        if (signal.aborted) continue;
        if (!error.temporary) {
          this.#onTrouble(error, null);
          continue;
        }
        failures += 1;
        const seconds = Math.min(10, error.seconds * 1.5 ** (failures - 1));
        this.#onTrouble(error, seconds);
        await pause(seconds, signal);
        if (!signal.aborted) this.#next ??= wish;
      }
    }
    this.#running = false;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
