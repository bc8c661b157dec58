// The networks, in a thread of their own, so that the pictures keep moving while they think.
let ort = null;
let packed = {};
const sessions = {};
const kept = {}; // outputs that later calls take as inputs, by name

async function session(name) {
  if (!ort) {
    const script = new Blob([await unpacked(packed.ort)], { type: "text/javascript" });
    ort = await import(URL.createObjectURL(script));
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = (await unpacked(packed.wasm)).buffer;
  }
  const graphOptimizationLevel = packed[name][0] === "2" ? "all" : "disabled"; // only networks are worth it
  return (sessions[name] ??= await ort.InferenceSession.create(await unpacked(packed[name]), { graphOptimizationLevel }));
}

async function answer({ id, name, feeds, keep }) {
  const model = await session(name);
  const inputs = {};
  for (const key of model.inputNames) inputs[key] = feeds[key] ? new ort.Tensor(...feeds[key]) : kept[key];
  const outputs = await model.run(inputs);
  const result = {};
  for (const key of model.outputNames) {
    if (keep) kept[key] = outputs[key];
    else result[key] = outputs[key].data;
  }
  postMessage({ id, result });
}

let queue = Promise.resolve(); // one call at a time
onmessage = ({ data }) => {
  if (data.packed) packed = data.packed;
  else queue = queue.then(() => answer(data)).catch((error) => postMessage({ id: data.id, error: String(error) }));
};
