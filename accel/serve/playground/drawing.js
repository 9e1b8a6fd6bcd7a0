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

  /** Red, green, blue, opaque, at a size. */
  pixels(width, height) {
    const size = `${width}x${height}`;
    if (!this.#drawn.has(size)) {
      if (this.#drawn.size > 3) this.#drawn.clear();
      const context = new OffscreenCanvas(width, height).getContext("2d");
      this.paint(context, width, height);
      this.#drawn.set(size, context.getImageData(0, 0, width, height).data);
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
  const source = photo.pixels(width, height);
  const place = {
    left: Math.round((box.left / photo.width) * width),
    right: Math.round((box.right / photo.width) * width),
    top: Math.round((box.top / photo.height) * height),
    bottom: Math.round((box.bottom / photo.height) * height),
  };
  const layers = layersOf(masks, Math.max(1, place.bottom - place.top), Math.max(1, place.right - place.left));
  const paint = layers.length > 1 ? partsPainter(layers, view) : maskPainter(layers[0], view, colours);
  const image = new ImageData(width, height);
  const target = image.data;
  const columns = place.right - place.left;
  const mixed = [0, 0, 0];
  for (let y = 0, at = 0; y < height; y++) {
    const seen = y >= place.top && y < place.bottom;
    const row = (y - place.top) * columns - place.left;
    for (let x = 0; x < width; x++, at += 4) {
      const red = source[at], green = source[at + 1], blue = source[at + 2];
      const grey = (0.299 * red + 0.587 * green + 0.114 * blue) * 0.85 + 12;
      if (seen && x >= place.left && x < place.right) {
        paint(row + x, red, green, blue, grey, mixed);
      } else {
        mixed.fill(view === "overlay" ? grey * OUTSIDE : 0);
      }
      target[at] = red + strength * (mixed[0] - red);
      target[at + 1] = green + strength * (mixed[1] - green);
      target[at + 2] = blue + strength * (mixed[2] - blue);
      target[at + 3] = 255;
    }
  }
  if (view === "overlay" && strength > 0) {
    layers.forEach((mask, index) => {
      const colour = layers.length > 1 ? partColour(index) : [255, 255, 255];
      outline(target, width, mask, place, line, colour, strength);
    });
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The colours of one mask at one pixel, by view. */
function maskPainter(mask, view, colours) {
  if (view === "kept") {
    return (index, red, green, blue, grey, mixed) => {
      const kept = mask[index];
      mixed[0] = red * kept;
      mixed[1] = green * kept;
      mixed[2] = blue * kept;
    };
  }
  if (view === "mask") {
    return (index, red, green, blue, grey, mixed) => {
      const colour = 3 * Math.round(mask[index] * 255);
      for (let channel = 0; channel < 3; channel++) mixed[channel] = colours[colour + channel];
    };
  }
  const opacities = Float32Array.from({ length: 256 }, (_, level) => 0.75 * (level / 255) ** 0.7);
  return (index, red, green, blue, grey, mixed) => {
    const level = Math.round(mask[index] * 255);
    const opacity = opacities[level];
    const light = 0.55 + (0.45 * grey) / 255; // the photograph's light and shade stay visible under the colour
    for (let channel = 0; channel < 3; channel++) {
      mixed[channel] = grey + opacity * (colours[3 * level + channel] * light - grey);
    }
  };
}

/** The colours of several masks at one pixel, each mask in one of its own. */
function partsPainter(layers, view) {
  return (index, red, green, blue, grey, mixed) => {
    if (view === "kept") {
      const kept = Math.max(...layers.map((mask) => mask[index]));
      mixed[0] = red * kept;
      mixed[1] = green * kept;
      mixed[2] = blue * kept;
      return;
    }
    mixed.fill(view === "mask" ? 0 : grey);
    const light = view === "mask" ? 1 : 0.55 + (0.45 * grey) / 255;
    layers.forEach((mask, part) => {
      const opacity = (view === "mask" ? 1 : 0.6) * mask[index];
      const colour = partColour(part);
      for (let channel = 0; channel < 3; channel++) {
        mixed[channel] += opacity * (colour[channel] * light - mixed[channel]);
      }
    });
  };
}

/** A line just inside of where a mask is above one half. */
function outline(target, width, mask, place, line, colour, strength) {
  const columns = place.right - place.left;
  const rows = place.bottom - place.top;
  for (let y = 0; y < rows; y++) {
    const up = Math.max(0, y - line) * columns, here = y * columns, down = Math.min(rows - 1, y + line) * columns;
    for (let x = 0; x < columns; x++) {
      if (mask[here + x] <= 0.5) continue;
      const before = here + Math.max(0, x - line), after = here + Math.min(columns - 1, x + line);
      if (mask[up + x] > 0.5 && mask[down + x] > 0.5 && mask[before] > 0.5 && mask[after] > 0.5) continue;
      const at = 4 * ((y + place.top) * width + x + place.left);
      for (let channel = 0; channel < 3; channel++) {
        target[at + channel] += strength * (colour[channel] - target[at + channel]);
      }
    }
  }
}

const layersOf = ({ values, shape: [count, height, width] }, rows, columns) =>
  Array.from({ length: count }, (_, index) =>
    resample(values.subarray(index * height * width, (index + 1) * height * width), height, width, rows, columns),
  );

/** Values (height × width) at another size, bilinear, antialiased where it is smaller. */
export function resample(values, height, width, rows, columns) {
  const across = height * columns;
  const wide = new Float32Array(across);
  taps(width, columns).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; y++) {
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * values[y * width + first + tap];
      wide[y * columns + x] = sum;
    }
  });
  const result = new Float32Array(rows * columns);
  taps(height, rows).forEach(({ first, weights }, y) => {
    const row = y * columns;
    weights.forEach((weight, tap) => {
      const from = (first + tap) * columns;
      for (let x = 0; x < columns; x++) result[row + x] += weight * wide[from + x];
    });
  });
  for (let index = 0; index < result.length; index++) result[index] = Math.min(1, Math.max(0, result[index]));
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
    const weights = Array.from({ length: last - first }, (_, tap) =>
      Math.max(0, 1 - Math.abs((first + tap + 0.5 - centre) / reach)),
    );
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}
