// Masks as files: PNG to look at, NPY to compute with, JSON with everything that was answered.

import { seenBox } from "./drawing.js";

/** answer: as `Panel.show` takes it; card: of its model. */
export async function download(kind, answer, card) {
  const stem = `${answer.image.name.replace(/\.[a-z0-9]{1,5}$/i, "")}.${card.name}.${card.classes[answer.target]}`;
  const name = stem.replace(/[^\p{L}\p{N}._-]+/gu, "_");
  if (kind === "json") save(`${name}.json`, JSON.stringify(record(answer, card)), "application/json");
  if (kind === "npy") save(`${name}.npy`, npy(answer.masks), "application/octet-stream");
  if (kind === "png") {
    const { values, shape: [count, height, width] } = answer.masks;
    for (let part = 0; part < count; part++) {
      const mask = values.subarray(part * height * width, (part + 1) * height * width);
      save(`${name}${count > 1 ? `.part${part + 1}` : ""}.png`, await greyPng(mask, height, width), "image/png");
    }
  }
}

function save(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The answer as JSON: the mask's values are the server's, each as the shortest decimal that is the same float32. */
export function record({ image, masks, probabilities, target, area }, card) {
  const named = (index) => ({ index, class: card.classes[index], probability: shortest(probabilities[index]) });
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const box = seenBox(card.image, image.photo.height, image.photo.width);
  const [count, height, width] = masks.shape;
  return {
    image: { name: image.name, height: image.photo.height, width: image.photo.width },
    model: card.name,
    method: card.method,
    predicted: named(order[0]),
    target: named(target),
    top: order.slice(0, 5).map(named),
    ...(area !== null && { area }),
    mask: {
      meaning: "1 keeps the pixel, 0 replaces it",
      box: [box.left, box.top, box.right, box.bottom],
      shape: count > 1 ? masks.shape : [height, width],
      values: Array.from(masks.values, shortest),
    },
  };
}

function shortest(value) {
  for (let digits = 6; digits < 9; digits++) {
    const decimal = Number(value.toPrecision(digits));
    if (Math.fround(decimal) === value) return decimal;
  }
  return Number(value.toPrecision(9));
}

/** NumPy's file format, version 1: float32, C order. */
function npy({ values, shape: [count, height, width] }) {
  const shape = count > 1 ? `${count}, ${height}, ${width}` : `${height}, ${width}`;
  const described = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape}), }`;
  const padded = `${described.padEnd(64 * Math.ceil((11 + described.length) / 64) - 11)}\n`;
  const head = new Uint8Array([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, padded.length & 255, padded.length >> 8]);
  return new Blob([head, padded, values]);
}

/** An 8-bit grey PNG of values from 0 to 1. */
async function greyPng(values, height, width) {
  const lines = new Uint8Array(height * (width + 1)); // before each line the number of its filter, 0: none
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) lines[y * (width + 1) + 1 + x] = values[y * width + x] * 255 + 0.5;
  }
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const size = new DataView(new ArrayBuffer(13));
  size.setUint32(0, width);
  size.setUint32(4, height);
  size.setUint8(8, 8); // bits; what follows is 0: grey, deflate, the usual filters, not interlaced
  const signature = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  return new Blob([signature, chunk("IHDR", new Uint8Array(size.buffer)), chunk("IDAT", data), chunk("IEND", new Uint8Array())]);
}

function chunk(kind, data) {
  const whole = new Uint8Array(data.length + 12);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  whole.set(new TextEncoder().encode(kind), 4);
  whole.set(data, 8);
  view.setUint32(data.length + 8, checksum(whole.subarray(4, data.length + 8)));
  return whole;
}

/** CRC-32. */
function checksum(bytes) {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 && 0xedb88320);
  }
  return ~sum >>> 0;
}
