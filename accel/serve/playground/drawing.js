// Masks on photographs, drawn as the command line draws them. A mask's 1 keeps the pixel.

const LONGEST = 2048; // pixels of a photograph that are kept for drawing
const OUTSIDE = 0.5; // light that is left of what the model does not see
const PART_COLOURS = [ // told apart by most people who see colours differently (Okabe & Ito 2008)
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167], [240, 228, 66], [213, 94, 0], [0, 114, 178],
];

export const partColour = (index) => PART_COLOURS[index % PART_COLOURS.length];

/** An image as people see it: upright, on white, at most `LONGEST` pixels long. */
export class Photo {
  #bitmap;
  #drawn = new Map();

  /** Reads an image file; rejects what the browser cannot read. */
  static async read(file) {
    let bitmap = await createImageBitmap(file);
    const { width, height } = bitmap;
    const scale = LONGEST / Math.max(width, height);
    if (scale < 1) {
      const whole = bitmap;
      const size = { resizeWidth: Math.max(1, Math.round(width * scale)), resizeHeight: Math.max(1, Math.round(height * scale)) };
      bitmap = await createImageBitmap(whole, { ...size, resizeQuality: "high" });
      whole.close();
    }
    return new Photo(bitmap, width, height);
  }

  constructor(bitmap, width, height) {
    this.#bitmap = bitmap;
    this.width = width;
    this.height = height;
  }

  /** At a size: `rgba`, and `grey`, a little lighter where it is dark, to lay colours on. */
  at(width, height) {
    const size = `${width}x${height}`;
    if (!this.#drawn.has(size)) {
      if (this.#drawn.size > 3) this.#drawn.clear();
      const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
      this.paint(context, width, height);
      const rgba = context.getImageData(0, 0, width, height).data;
      const grey = new Float32Array(width * height);
      for (let index = 0, at = 0; index < grey.length; index++, at += 4) {
        grey[index] = (0.299 * rgba[at] + 0.587 * rgba[at + 1] + 0.114 * rgba[at + 2]) * 0.85 + 12;
      }
      this.#drawn.set(size, { rgba, grey });
    }
    return this.#drawn.get(size);
  }

  paint(context, width, height) {
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(this.#bitmap, 0, 0, width, height);
  }
}

/** The part of an image that a model sees, {left, top, right, bottom} in whole pixels. */
export function seenBox({ size, resize, crop }, height, width) {
  if (resize === "squash") return { left: 0, top: 0, right: width, bottom: height };
  const scale = Math.min(height / size[0], width / size[1]) * crop;
  const boxHeight = Math.max(1, Math.min(height, Math.floor(size[0] * scale + 0.5)));
  const boxWidth = Math.max(1, Math.min(width, Math.floor(size[1] * scale + 0.5)));
  const left = Math.floor((width - boxWidth) / 2);
  const top = Math.floor((height - boxHeight) / 2);
  return { left, top, right: left + boxWidth, bottom: top + boxHeight };
}

/**
 * Draw masks over a photograph.
 * masks: {values, shape: [count, height, width]}; box: where they lie, in pixels of the photograph.
 * view: "overlay", "mask" or "kept"; strength: 0 shows the photograph, 1 the view; line: width of the outline.
 */
export function draw(canvas, photo, masks, box, { view, strength, line, colours }) {
  const { width, height } = canvas;
  const source = photo.at(width, height);
  const place = {
    left: Math.round((box.left / photo.width) * width),
    right: Math.round((box.right / photo.width) * width),
    top: Math.round((box.top / photo.height) * height),
    bottom: Math.round((box.bottom / photo.height) * height),
  };
  const layers = layersOf(masks, place.bottom - place.top, place.right - place.left);
  const image = new ImageData(width, height);
  const drawn = image.data;
  new Uint32Array(drawn.buffer).fill(0xff000000); // black, opaque
  if (view === "overlay") dim(drawn, source, width, place);
  if (view === "kept") keep(drawn, source, width, layers, place);
  else if (layers.length > 1) paintParts(drawn, source, width, layers, place, view);
  else if (view === "mask") paintMask(drawn, width, layers[0], place, colours);
  else paintOverlay(drawn, source, width, layers[0], place, colours);
  if (view === "overlay") {
    layers.forEach((mask, index) => {
      outline(drawn, width, mask, place, line, layers.length > 1 ? partColour(index) : [255, 255, 255]);
    });
  }
  if (strength < 1) {
    const { rgba } = source;
    for (let at = 0; at < drawn.length; at++) drawn[at] = rgba[at] + strength * (drawn[at] - rgba[at]);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** What the model does not see, in dark grey. */
function dim(drawn, { grey }, width, { left, right, top, bottom }) {
  for (let y = 0, index = 0; index < grey.length; y++) {
    for (let x = 0; x < width; x++, index++) {
      if (x === left && y >= top && y < bottom) {
        x += right - left;
        index += right - left;
        if (x >= width) break;
      }
      drawn[4 * index] = drawn[4 * index + 1] = drawn[4 * index + 2] = OUTSIDE * grey[index];
    }
  }
}

function paintOverlay(drawn, { grey }, width, mask, { left, right, top, bottom }, colours) {
  const opacities = Float32Array.from({ length: 256 }, (_, level) => 0.75 * (level / 255) ** 0.7);
  for (let y = top, index = 0; y < bottom; y++) {
    for (let pixel = y * width + left, end = pixel + right - left; pixel < end; pixel++, index++) {
      const level = (mask[index] * 255 + 0.5) | 0;
      const opacity = opacities[level];
      const ground = grey[pixel];
      const light = opacity * (0.55 + (0.45 * ground) / 255); // light and shade stay visible under the colour
      const rest = (1 - opacity) * ground;
      drawn[4 * pixel] = rest + light * colours[3 * level];
      drawn[4 * pixel + 1] = rest + light * colours[3 * level + 1];
      drawn[4 * pixel + 2] = rest + light * colours[3 * level + 2];
    }
  }
}

function paintMask(drawn, width, mask, { left, right, top, bottom }, colours) {
  for (let y = top, index = 0; y < bottom; y++) {
    for (let pixel = y * width + left, end = pixel + right - left; pixel < end; pixel++, index++) {
      const level = 3 * ((mask[index] * 255 + 0.5) | 0);
      drawn[4 * pixel] = colours[level];
      drawn[4 * pixel + 1] = colours[level + 1];
      drawn[4 * pixel + 2] = colours[level + 2];
    }
  }
}

/** Several masks, each in a colour of its own. */
function paintParts(drawn, { grey }, width, layers, { left, right, top, bottom }, view) {
  const alone = view === "mask";
  for (let y = top, index = 0; y < bottom; y++) {
    for (let pixel = y * width + left, end = pixel + right - left; pixel < end; pixel++, index++) {
      const ground = alone ? 0 : grey[pixel];
      const light = alone ? 1 : 0.55 + (0.45 * ground) / 255;
      for (let channel = 0; channel < 3; channel++) {
        let value = ground;
        for (let part = 0; part < layers.length; part++) {
          value += (alone ? 1 : 0.6) * layers[part][index] * (partColour(part)[channel] * light - value);
        }
        drawn[4 * pixel + channel] = value;
      }
    }
  }
}

function keep(drawn, { rgba }, width, layers, { left, right, top, bottom }) {
  for (let y = top, index = 0; y < bottom; y++) {
    for (let pixel = y * width + left, end = pixel + right - left; pixel < end; pixel++, index++) {
      let kept = 0;
      for (const mask of layers) if (mask[index] > kept) kept = mask[index];
      for (let at = 4 * pixel; at < 4 * pixel + 3; at++) drawn[at] = rgba[at] * kept;
    }
  }
}

/** A line just inside of where a mask is above one half. */
function outline(drawn, width, mask, place, line, colour) {
  const columns = place.right - place.left;
  const rows = place.bottom - place.top;
  for (let y = 0; y < rows; y++) {
    const up = Math.max(0, y - line) * columns, here = y * columns, down = Math.min(rows - 1, y + line) * columns;
    for (let x = 0; x < columns; x++) {
      if (mask[here + x] <= 0.5) continue;
      const before = here + Math.max(0, x - line), after = here + Math.min(columns - 1, x + line);
      if (mask[up + x] > 0.5 && mask[down + x] > 0.5 && mask[before] > 0.5 && mask[after] > 0.5) continue;
      const at = 4 * ((y + place.top) * width + x + place.left);
      for (let channel = 0; channel < 3; channel++) drawn[at + channel] = colour[channel];
    }
  }
}

const layersOf = ({ values, shape: [count, height, width] }, rows, columns) =>
  Array.from({ length: count }, (_, index) =>
    resample(values.subarray(index * height * width, (index + 1) * height * width), height, width, rows, columns),
  );

/** Values (height × width) at another size, bilinear, antialiased where it is smaller. */
export function resample(values, height, width, rows, columns) {
  const wide = new Float32Array(height * columns);
  const across = taps(width, columns);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < columns; x++) {
      const { first, weights } = across[x];
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * values[y * width + first + tap];
      wide[y * columns + x] = sum;
    }
  }
  const result = new Float32Array(rows * columns);
  taps(height, rows).forEach(({ first, weights }, y) => {
    const row = result.subarray(y * columns, (y + 1) * columns);
    for (let tap = 0; tap < weights.length; tap++) {
      const weight = weights[tap];
      const from = (first + tap) * columns;
      for (let x = 0; x < columns; x++) row[x] += weight * wide[from + x];
    }
    for (let x = 0; x < columns; x++) row[x] = Math.min(1, Math.max(0, row[x]));
  });
  return result;
}

/** For each of `to` pixels, which of `from` pixels it is made of, and with what weights. */
function taps(from, to) {
  const scale = from / to;
  const reach = Math.max(1, scale);
  return Array.from({ length: to }, (_, pixel) => {
    const centre = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const last = Math.min(from, Math.floor(centre + reach + 0.5));
    const weights = new Float32Array(last - first);
    let sum = 0;
    for (let tap = 0; tap < weights.length; tap++) {
      sum += weights[tap] = Math.max(0, 1 - Math.abs((first + tap + 0.5 - centre) / reach));
    }
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}
