// The Open Inference Protocol, version 2, with its binary tensors, as this server speaks it.

const STORED_KEY = "saccade-api-key";

/** Why there is no answer. `temporary`: asking again later may help. */
export class ServerError extends Error {
  constructor(message, status, seconds = 1) {
    super(message);
    this.status = status;
    this.temporary = status === 503 || status === 0;
    this.seconds = seconds;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(STORED_KEY, key);
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(STORED_KEY);
  let headers, response;
  try {
    headers = new Headers({ ...options.headers, ...(key && { authorization: `Bearer ${key}` }) });
  } catch {
    sessionStorage.removeItem(STORED_KEY);
    throw new ServerError("The key has characters that cannot be sent", 401);
  }
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer", 0, 2);
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const message = said.error ?? `The server answers ${response.status} ${response.statusText}`;
  throw new ServerError(message, response.status, Number(response.headers.get("retry-after")) || 1);
}

/** What the server knows of each model that is ready, in its order. */
export async function modelCards() {
  const index = await (await request("v2/repository/index", { method: "POST" })).json();
  const names = index.filter((model) => model.state === "READY").map((model) => model.name);
  return Promise.all(names.map(async (name) => (await request(`${modelPath(name)}/card`)).json()));
}

/** One of a model's sample images, as a PNG file. */
export async function sampleImage(name, index) {
  return (await request(`${modelPath(name)}/samples/${index}`)).blob();
}

/** The colour map of masks: 256 times red, green, blue. */
export async function colourTable() {
  return new Uint8Array(await (await request("playground/colours")).arrayBuffer());
}

const modelPath = (name) => `v2/models/${encodeURIComponent(name)}`;

/**
 * Ask a model.
 * inputs: [{name, datatype, shape, data}], where data is a typed array, for BYTES one file.
 * Returns {outputs: {name: {shape, data}}, queue, compute, trip}, times in ms.
 */
export async function infer(name, { inputs, outputs, parameters = {} }, signal) {
  const tails = inputs.flatMap(({ datatype, data }) =>
    datatype === "BYTES" ? [new Uint32Array([data.length]), data] : [data],
  );
  const head = new TextEncoder().encode(
    JSON.stringify({
      inputs: inputs.map(({ name, datatype, shape, data }) => ({
        name,
        datatype,
        shape,
        parameters: { binary_data_size: data.byteLength + (datatype === "BYTES" ? 4 : 0) },
      })),
      outputs: outputs.map((name) => ({ name, parameters: { binary_data: true } })),
      parameters,
    }),
  );
  const began = performance.now();
  const response = await request(`${modelPath(name)}/infer`, {
    method: "POST",
    headers: {
      "content-type": "application/octet-stream",
      "inference-header-content-length": String(head.length),
    },
    body: new Blob([head, ...tails]),
    signal,
  });
  const length = Number(response.headers.get("inference-header-content-length"));
  const body = await response.arrayBuffer();
  const trip = performance.now() - began;
  return { ...unpacked(body, length), trip };
}

function unpacked(body, length) {
  const document = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 0, length)));
  const outputs = {};
  let place = length;
  for (const { name, datatype, shape, parameters } of document.outputs) {
    const raw = body.slice(place, place + parameters.binary_data_size);
    outputs[name] = { shape, data: values(raw, datatype) };
    place += parameters.binary_data_size;
  }
  return { outputs, queue: document.parameters.queue_ms, compute: document.parameters.compute_ms };
}

function values(raw, datatype) {
  switch (datatype) {
    case "FP32":
      return new Float32Array(raw);
    case "UINT8":
      return new Uint8Array(raw);
    case "INT64":
      return Array.from(new BigInt64Array(raw), Number);
    case "BYTES":
      return files(raw);
    default:
      throw new ServerError(`The server sent ${datatype}, which was not asked for`, 500);
  }
}

function files(raw) {
  const view = new DataView(raw);
  const found = [];
  for (let place = 0; place < raw.byteLength; ) {
    const size = view.getUint32(place, true);
    found.push(new Uint8Array(raw, place + 4, size));
    place += 4 + size;
  }
  return found;
}
