"use strict";
const $ = (id) => document.getElementById(id);
const PIXELS = 64 * 64;
const PARTICLES = 2000;
const WIDE = 960; // pixels of a picture of points
const trouble = (words) => ($("trouble").textContent = words); // shown as soon as there are any
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let [numbers, starts] = []; // what Python computed beforehand, and the noise of the tiles of vp_sde.py

// ---------------------------------------------------------------- the networks
const waiting = new Map();
let worker = null;

function startWorker(packed) {
  const code = new Blob([packed.worker, unpacked.toString()], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(code));
  worker.onerror = (event) => trouble(`The network could not be started: ${event.message}`);
  worker.onmessage = ({ data: { id, result, error } }) => {
    if (error) trouble(`The network could not be run: ${error}`);
    else waiting.get(id)(result);
    waiting.delete(id);
  };
  worker.postMessage({ packed });
}

// The outputs of a model.  An input is [type, values, shape].  keep: outputs become inputs of later calls.
function ask(name, feeds, keep = false) {
  const id = crypto.getRandomValues(new Uint32Array(2)).join();
  worker.postMessage({ id, name, feeds, keep });
  return new Promise((done) => waiting.set(id, done));
}
const single = (...values) => ["float32", Float32Array.from(values), [values.length]];
const double = (...values) => ["float64", Float64Array.from(values), [values.length]];
const whole = (value) => ["int64", new BigInt64Array([BigInt(value)]), [1]];
const picture = (x) => ["float32", Float32Array.from(x), [1, 1, 64, 64]];
const places = (x) => ["float32", Float32Array.from(x), [x.length / 2, 2]];

// The bytes of a packed text.  The worker has this function as well.
async function unpacked(text) {
  const raw = atob(text.slice(1));
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const found = new Uint8Array(await new Response(stream).arrayBuffer());
  if (text[0] === "1") return found;
  const half = (found.length + 1) >> 1; // all even bytes came first, then the odd ones
  return found.map((_, i) => found[(i >> 1) + (i & 1) * half]);
}

// ---------------------------------------------------------------- plans
// Standard normals that depend on seed and stream alone.
function normals(seed, stream, n) {
  let a = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b);
  const uniform = () => {
    a = (a + 0x6d2b79f5) | 0;
    let b = Math.imul(a ^ (a >>> 15), 1 | a);
    b = (b + Math.imul(b ^ (b >>> 7), 61 | b)) ^ b;
    return ((b ^ (b >>> 14)) >>> 0) / 2 ** 32;
  };
  const z = new Float64Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    z[i] = radius * Math.cos(angle);
    z[i + 1] = radius * Math.sin(angle);
  }
  return z;
}

function combined(row, known) {
  const x = new Float64Array(known[0].length);
  row.forEach((c, j) => {
    if (c) for (let i = 0; i < x.length; i++) x[i] += c * known[j][i];
  });
  return x;
}

// Run a plan: yield the frames of its film, each as soon as all that it is made of is known.
async function* follow(plan, start, answer, seed) {
  const known = [start];
  let [calls, frame] = [0, 0];
  for (let j = 1; j < plan.columns.length; j++) {
    if (plan.columns[j] === "z") known.push(normals(seed, j, start.length));
    else {
      const [t, row] = plan.calls[calls++];
      known.push(await answer(combined(plan.rows[row], known), t));
    }
    for (; frame < plan.film.length; frame++) {
      const [t, x, x0] = plan.film[frame];
      if (Math.max(plan.rows[x].length, plan.rows[x0].length) > known.length) break;
      yield { t, calls, x: combined(plan.rows[x], known), x0: combined(plan.rows[x0], known) };
    }
  }
}

// ---------------------------------------------------------------- films
// A film with its slider and its button.  It moves on as far as it is known; seconds: of all frames.
function player(name, seconds, draw) {
  const [slider, button] = [$(`${name}-time`), $(`${name}-play`)];
  const self = { film: [], at: 0, last: 1, moving: 0, turn: 0 };
  let before = 0;
  self.show = () => {
    slider.max = self.last;
    slider.value = self.at;
    button.textContent = self.moving ? "\u275a\u275a" : "\u25b6\ufe0e";
    if (self.film.length) draw(self.moving ? self : { ...self, at: Math.round(self.at) });
  };
  const tick = (now) => {
    const share = still ? 1 : Math.min(now - before, 100) / (1000 * seconds(self.last));
    before = now;
    self.at = Math.min(self.at + share * self.last, Math.max(self.film.length - 1, 0));
    self.moving = self.at < self.last ? requestAnimationFrame(tick) : 0;
    self.show();
  };
  self.run = (on) => {
    cancelAnimationFrame(self.moving);
    self.moving = on ? requestAnimationFrame(tick) : 0;
  };
  self.begin = (frames) => {
    self.run(true);
    return Object.assign(self, { film: [], at: 0, last: frames - 1, turn: self.turn + 1 }).turn;
  };
  slider.oninput = () => {
    self.run(false);
    self.at = Math.min(+slider.value, self.film.length - 1);
    self.show();
  };
  button.onclick = () => {
    if (self.at >= self.last) self.at = 0;
    self.run(!self.moving);
    self.show();
  };
  return self;
}

// ---------------------------------------------------------------- crystals
function startOf(seed) {
  const stored = starts.subarray(seed * PIXELS, (seed + 1) * PIXELS);
  return stored.length ? Float64Array.from(stored, (v) => v * numbers.step) : normals(seed, 0, PIXELS);
}

// Grow the crystal of these settings, frame by frame into a film, until `go` says no.
async function crystal(values, start, film, go = () => true) {
  const theta = (values.theta * Math.PI) / 180;
  const kind = numbers.kinds.indexOf(values.kind);
  const exact = values.by === "exact";
  const free = !exact && +values.w === 0; // without a condition the nearest may be of any type
  if (values.kind === "rectangular") await ask("curve", { theta: double(theta) }, true);
  const nearest = (x) => ask(free ? "nearest_any" : `nearest${kind}`, { x: picture(x), theta: double(theta) });
  const condition = { kind: whole(kind), theta: single(theta), w: single(values.w) };
  const network = async (x, t) => (await ask("net", { x: picture(x), t: single(t), ...condition })).y;
  const denoiser = async (x) => (await nearest(x)).truth;

  const plan = numbers.crystals[`${values.sampler}-${values.steps}`];
  const measure = async (frame) => Object.assign(frame, await nearest(frame.x0));
  const measured = [];
  for await (const frame of follow(plan, start, exact ? denoiser : network, +values.seed)) {
    if (!go()) return;
    film.push(frame);
    if (!free) measured.push(measure(frame));
  }
  await Promise.all(measured);
  if (free) await (crystal.bank ??= ask("bank", { zero: double(0) }, true));
  for (const frame of free ? [...film].reverse() : []) if (go()) await measure(frame); // slow: the last one first
}

const growth = player("crystal", (last) => Math.min(3, 0.12 * last), drawCrystal);

async function grow() {
  const values = offered();
  const turn = growth.begin(numbers.crystals[`${values.sampler}-${values.steps}`].film.length);
  await crystal(values, startOf(+values.seed), growth.film, () => turn === growth.turn);
  if (turn === growth.turn) document.body.dataset.grown = turn;
  if (!growth.moving) growth.show();
}

function paint(id, x) {
  const image = new ImageData(64, 64);
  for (let i = 0; i < PIXELS; i++) {
    const level = Math.max(0, Math.min(255, Math.round((x[i] + 1) * 127.5)));
    image.data.set(numbers.magma[level], 4 * i);
  }
  $(id).getContext("2d").putImageData(image, 0, 0);
}

function drawCrystal({ film, at, last }) {
  const frame = film[Math.floor(at)];
  paint("xt", frame.x);
  paint("x0", frame.x0);
  $("crystal-clock").textContent = `t = ${frame.t.toFixed(3)}, ${frame.calls} call${frame.calls === 1 ? "" : "s"}`;
  if (!frame.truth) return;
  paint("truth", frame.truth);
  $("error").textContent = frame.error[0].toFixed(4);
  const kind = numbers.kinds[frame.kind[0]];
  const [theta, aspect] = frame.place;
  $("name").textContent = `${kind} ${Math.round((theta * 180) / Math.PI)}°`;
  if (kind === "rectangular") $("name").textContent += `, ${aspect.toFixed(2)} high`;

  // The errors so far, from 0.5 down to 0.002, in a picture of 100 x 40.
  const height = (error) => (40 * Math.log(0.5 / Math.max(error, 0.002))) / Math.log(250);
  const place = (f) => `${(100 * film.indexOf(f)) / last} ${height(f.error[0])}`;
  const known = film.filter((f) => f.truth).map(place);
  $("errors").setAttribute("d", `M${known.join("L")}`);
  $("error-now").setAttribute("d", `M${place(frame)}h0`);
}

// ---------------------------------------------------------------- points
const cloud = player("point", () => 6, drawPoints);
let touched = null; // the point whose path is shown

async function gather() {
  if (!gather.seen) return;
  const { shape, score, dots, points: seed } = settings();
  const turn = cloud.begin(+dots + 1);
  const { film } = cloud;
  const { means, log_weights, variance } = numbers.mixtures[shape];
  const mean = ["float64", Float64Array.from(means.flat()), [means.length, 2]];
  const mixture = { means: mean, log_weights: double(...log_weights), variance: double(...variance) };
  const model = score === "exact" ? "exact" : `learned_${shape}`;
  const answer = (x, t) => ask(model, { x: places(x), t: double(t), ...mixture });
  const eps = async (x, t) => (await answer(x, t)).eps;
  const start = normals(+seed, 0, 2 * PARTICLES);
  const [flow, sde] = ["dpmpp", "sde"].map((name) => follow(numbers.points[`${name}-${dots}`], start, eps, +seed));
  for (let arrows = null; ; ) {
    const [a, b] = await Promise.all([flow.next(), sde.next()]);
    if (a.done || turn !== cloud.turn) break;
    const { t } = a.value;
    if (t > 0) arrows = (await answer(numbers.arrows.flat(), t)).score;
    film.push({ t, arrows, rings: numbers.rings[`${shape}-${dots}`][film.length], flow: a.value.x, sde: b.value.x });
  }
  if (turn === cloud.turn) document.body.dataset.gathered = turn;
}

function drawPoints({ film, at }) {
  const a = film[Math.floor(at)];
  const b = film[Math.min(Math.floor(at) + 1, film.length - 1)];
  const part = at - Math.floor(at);
  const between = (name) => a[name].map((v, i) => v + part * (b[name][i] - v));
  $("point-clock").textContent = `t = ${(a.t + part * (b.t - a.t)).toFixed(3)}`;
  lay(".arrows", arrowPaths(between("arrows")));
  lay(".rings", a.rings, 1 - part);
  lay(".rings + .rings", b.rings, part);
  for (const side of ["flow", "sde"]) {
    const x = between(side);
    const g = $(side).getContext("2d");
    g.setTransform(WIDE / 2 / numbers.half, 0, 0, -WIDE / 2 / numbers.half, WIDE / 2, WIDE / 2);
    g.clearRect(-numbers.half, -numbers.half, 2 * numbers.half, 2 * numbers.half);
    g.fillStyle = getComputedStyle($(side)).color;
    for (let i = 0; i < x.length; i += 2) g.fillRect(x[i] - 0.02, x[i + 1] - 0.02, 0.04, 0.04);
    const i = touched;
    const path = i === null ? "" : film.map((frame) => `${frame[side][i]} ${frame[side][i + 1]}`).join("L");
    lay(`#${side} + svg .path`, path && `M${path}`);
    lay(`#${side} + svg .here`, path && `M${x[i]} ${x[i + 1]}h0`);
  }
}

function lay(where, path, opacity = 1) {
  for (const element of document.querySelectorAll(where)) {
    element.setAttribute("d", path);
    element.style.opacity = opacity;
  }
}

// Strokes with a head at their end; the stronger the score, the longer, up to the distance of the grid.
function arrowPaths(score) {
  const paths = numbers.arrows.map(([x, y], i) => {
    const size = 0.4 / (2 + Math.hypot(score[2 * i], score[2 * i + 1]));
    const [u, v] = [size * score[2 * i], size * score[2 * i + 1]];
    const [left, right] = [0.22, -0.22].map((turn) => [-0.35 * u - turn * v, -0.35 * v + turn * u]);
    return `M${x} ${y}l${u} ${v}l${left}l${-left[0]} ${-left[1]}l${right}`;
  });
  return paths.join("");
}

for (const side of ["flow", "sde"]) {
  const touch = (x, y) => {
    const now = cloud.film[Math.round(cloud.at)]?.[side] ?? [];
    const away = (i) => (i === null ? 0.2 : Math.hypot(now[i] - x, now[i + 1] - y));
    touched = null;
    for (let i = 0; i < now.length; i += 2) if (away(i) < away(touched)) touched = i;
    if (!cloud.moving) cloud.show();
  };
  const at = (offset) => (2 * offset / $(side).clientWidth - 1) * numbers.half;
  $(side).onpointermove = $(side).onpointerdown = ({ offsetX: x, offsetY: y }) => touch(at(x), -at(y));
  $(side).onpointerleave = () => touch(Infinity, 0);
}

// ---------------------------------------------------------------- settings
const forms = [...document.forms];
const settings = () => Object.assign({}, ...forms.map((form) => Object.fromEntries(new FormData(form))));

function set(values) {
  for (const field of forms.flatMap((form) => [...form.elements])) {
    const [value, kept] = [values[field.name], field.value];
    if (field.type === "radio") field.checked ||= field.value === value;
    else if (field.type === "checkbox") field.checked = (value ?? +field.checked) == 1;
    else if (isFinite(value)) field.value = value;
    if (!field.checkValidity()) field.value = kept;
  }
}

// What has no effect cannot be chosen, and says why.  Returns the settings.
function offered() {
  const form = forms[0].elements;
  const [network, exact] = form.by;
  exact.disabled = settings().kind === "rectangular";
  network.checked ||= exact.disabled;
  for (const pill of form.steps) pill.disabled = !(`${form.sampler.value}-${pill.value}` in numbers.crystals);
  if (!settings().steps) form.steps.value = "10";
  form.w.disabled = exact.checked;
  $("theta-is").textContent = `${(+form.theta.value).toFixed(1)}°`;
  const words = { 0: "0: no condition", 1: "1: none" };
  $("w-is").textContent = exact.checked ? "without effect" : (words[form.w.value] ?? form.w.value);
  $("why").textContent = $("why").dataset[exact.disabled ? "not" : "so"];
  return { w: form.w.value, ...settings() };
}

function choose(values, redo) {
  set(values);
  if (!forms.every((form) => form.checkValidity())) return;
  history.replaceState(null, "", `#${new URLSearchParams({ arrows: "0", rings: "0", ...offered() })}`);
  redo();
}

forms[0].oninput = () => choose({}, grow);
forms[1].oninput = ({ target }) => choose({}, target.type === "checkbox" ? cloud.show : gather);
for (const form of forms) form.onsubmit = () => false;
for (const button of document.querySelectorAll("[data-set]")) {
  button.onclick = () => choose(Object.fromEntries(new URLSearchParams(button.dataset.set)), grow);
}
for (const button of document.querySelectorAll("[data-another]")) {
  const name = button.dataset.another;
  const another = () => ({ [name]: String(36 + Math.floor(Math.random() * 9964)) });
  button.onclick = () => choose(another(), name === "seed" ? grow : gather);
}
$("tile").onclick = () => {
  const tile = settings().seed % 36;
  const condition = { kind: numbers.kinds[tile % 4], theta: (tile / 35) * 60 };
  choose({ ...condition, seed: String(tile), w: "1.5", by: "network" }, grow);
};
const fromLink = () => set(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
addEventListener("hashchange", () => [fromLink, grow, gather].forEach((act) => act()));
matchMedia("(prefers-color-scheme: dark)").onchange = cloud.show;
// ---------------------------------------------------------------- the beginning
async function main() {
  const simd = Uint8Array.from(atob("AGFzbQEAAAABBQFgAAF7AwIBAAoKAQgAQQD9D/1iCw=="), (c) => c.charCodeAt(0));
  if (!globalThis.WebAssembly?.validate(simd) || !globalThis.DecompressionStream)
    return trouble("This page needs WebAssembly with SIMD, which browsers have had since 2023. This one does not.");
  const texts = {};
  for (const part of document.querySelectorAll("script[id]")) texts[part.id] = part.textContent;
  startWorker(texts);
  numbers = JSON.parse(new TextDecoder().decode(await unpacked(texts.numbers)));
  starts = new Int16Array((await unpacked(texts.starts)).buffer);
  fromLink();
  grow();
  const look = (entries) => {
    if (gather.seen || !entries.some((entry) => entry.isIntersecting)) return;
    gather.seen = true; // points start when somebody sees them
    gather();
  };
  new IntersectionObserver(look).observe($("flow"));
}
main();
