/* The world's model in a page: what chapters 11, 23 and 60 build, in plain
   JavaScript, for one text at a time. `world-model.js` brings the weights. */
"use strict";

/* y = W x + b, for W of shape (rows, x.length). */
function linear(x, {weight, bias}) {
  const n = x.length, y = new Float32Array(weight.length / n);
  for (let i = 0; i < y.length; i++) {
    let sum = bias ? bias[i] : 0;
    for (let j = 0, at = i * n; j < n; j++) sum += weight[at + j] * x[j];
    y[i] = sum;
  }
  return y;
}

function layerNorm(x, {weight, bias}) {
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
  const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  return x.map((v, i) => (v - mean) * scale * weight[i] + bias[i]);
}

/* x Phi(x), with erf as in Abramowitz and Stegun (1964), equation 7.1.26,
   which is off by at most 1.5e-7. */
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741
    + t * (-1.453152027 + t * 1.061405429))));
  const erf = Math.sign(x) * (1 - series * Math.exp(-z * z));
  return x * (1 + erf) / 2;
}

function softmax(logits) {
  let best = -Infinity, sum = 0;
  for (const z of logits) best = Math.max(best, z);
  const p = Float64Array.from(logits, z => Math.exp(z - best));
  for (const share of p) sum += share;
  return p.map(share => share / sum);
}

/* Rotary positions: number i of a head turns with number i + d / 2. */
function rotate(x, position, d) {
  const y = x.slice(), half = d / 2;
  for (let head = 0; head < x.length; head += d)
    for (let i = 0; i < half; i++) {
      const angle = position / 10000 ** (i / half);
      const cos = Math.cos(angle), sin = Math.sin(angle);
      const a = x[head + i], b = x[head + half + i];
      y[head + i] = a * cos - b * sin;
      y[head + half + i] = b * cos + a * sin;
    }
  return y;
}

/* Numbers of sixteen bits, in base64, as an array of floats. */
function readHalves(base64) {
  const bytes = Uint8Array.from(atob(base64), char => char.charCodeAt(0));
  return Float32Array.from(new Uint16Array(bytes.buffer), half => {
    const exponent = half >> 10 & 31, fraction = half & 1023;
    const size = exponent
      ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    return half >> 15 ? -size : size;
  });
}

/* Byte-pair encoding over bytes: ids below 256 are bytes, and id 256 + n is
   what merge n makes. */
class WorldTokenizer {
  constructor(merges) {
    this.bytes = Array.from({length: 256}, (_, i) => [i]);
    this.ids = new Map();
    for (const [a, b] of merges) {
      this.ids.set(a * 65536 + b, this.bytes.length);
      this.bytes.push([...this.bytes[a], ...this.bytes[b]]);
    }
  }

  encode(text) {
    const pattern = new RegExp("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+"
      + "| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gu");
    return (text.match(pattern) ?? []).flatMap(word => this.merge(
      [...new TextEncoder().encode(word)]));
  }

  merge(ids) {
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const id = this.ids.get(ids[i] * 65536 + ids[i + 1]) ?? Infinity;
        if (id < best) [best, at] = [id, i];
      }
      if (at < 0) return ids;
      ids.splice(at, 2, best);
    }
  }

  decode(ids) {
    return new TextDecoder().decode(
      Uint8Array.from(ids.flatMap(id => this.bytes[id] ?? [])));
  }
}

class WorldModel {
  constructor({config, shapes, weights, merges, end}) {
    this.config = config;
    this.end = end;  // the mark between documents
    this.tokenizer = new WorldTokenizer(merges);
    this.parts = {};
    const numbers = readHalves(weights);
    let at = 0;
    for (const [name, shape] of Object.entries(shapes)) {
      const size = shape.reduce((a, b) => a * b), dot = name.lastIndexOf(".");
      (this.parts[name.slice(0, dot)] ??= {})[name.slice(dot + 1)]
        = numbers.subarray(at, at += size);
    }
    this.forget();
  }

  /* Begin anew, with the mark that every document begins with. */
  forget() {
    this.input_ids = [];
    this.keys = Array.from({length: this.config.n_layers}, () => []);
    this.values = this.keys.map(() => []);
    this.maps = this.keys.map(() => []);  // by layer and position
    return this.read(this.end);
  }

  /* Read a token, after those before it; the logits of the next one. */
  read(id) {
    const {d_model, n_layers} = this.config, {parts} = this;
    const tokens = parts["embeddings.tokens"].weight;
    let x = tokens.slice(id * d_model, (id + 1) * d_model);
    for (let i = 0; i < n_layers; i++) {
      const layer = `layers.${i}.`, add = y => x = x.map((v, j) => v + y[j]);
      add(this.attend(i, layerNorm(x, parts[layer + "attention_norm"])));
      const inner = linear(layerNorm(x, parts[layer + "feed_forward_norm"]),
                           parts[layer + "feed_forward.up_proj"]);
      add(linear(inner.map(gelu), parts[layer + "feed_forward.down_proj"]));
    }
    this.input_ids.push(id);
    this.logits = linear(layerNorm(x, parts.final_norm), {weight: tokens});
    return this.logits;
  }

  /* Causal self-attention of layer i; keys and values are remembered. */
  attend(i, x) {
    const {n_heads, d_model} = this.config, d = d_model / n_heads;
    const part = name => this.parts[`layers.${i}.attention.${name}`];
    const t = this.input_ids.length, y = new Float32Array(d_model);
    const query = rotate(linear(x, part("q_proj")), t, d);
    this.keys[i].push(rotate(linear(x, part("k_proj")), t, d));
    this.values[i].push(linear(x, part("v_proj")));
    const rows = [];
    for (let first = 0; first < d_model; first += d) {
      const row = softmax(this.keys[i].map(key => {
        let dot = 0;
        for (let j = first; j < first + d; j++) dot += query[j] * key[j];
        return dot / Math.sqrt(d);
      }));
      row.forEach((share, s) => {
        for (let j = first; j < first + d; j++)
          y[j] += share * this.values[i][s][j];
      });
      rows.push(row);
    }
    this.maps[i].push(rows);
    return linear(y, part("o_proj"));
  }

  /* Read a list of ids after the mark; what is as before is kept. */
  follow(ids) {
    const wanted = [this.end, ...ids.slice(0, this.config.max_length - 1)];
    const same = wanted.every((id, i) => i >= this.input_ids.length
      || id == this.input_ids[i]) && this.input_ids.length <= wanted.length;
    if (!same) this.forget();
    for (const id of wanted.slice(this.input_ids.length)) this.read(id);
    return this.logits;
  }
}

/* Probabilities after temperature, top-k and top-p, in this sequence; `order`
   has the ids from the best on. */
function distribution(logits, order, {tau, k, p}) {
  const heated = order.map((id, i) => tau > 0
    ? (logits[id] - logits[order[0]]) / tau : i ? -Infinity : 0);
  const some = softmax(heated.map((z, i) => i < k ? z : -Infinity));
  const result = new Float64Array(logits.length);
  let mass = 0, left = 0;
  order.forEach((id, i) => {
    if (p == 1 || mass < p) left += result[id] = some[i];
    mass += some[i];
  });
  return result.map(share => share / left);
}

function draw(p) {
  let rest = Math.random(), last = 0;
  for (const [id, share] of p.entries()) {
    if (share > 0) last = id;
    if ((rest -= share) < 0) break;
  }
  return last;
}

/* Load the weights, once for all figures of a page; as a script, since a
   page that was opened as a file may fetch nothing else. */
function loadWorld() {
  loadWorld.promise ??= new Promise((resolve, reject) => {
    globalThis.worldModelFile = file => resolve(new WorldModel(file));
    const script = document.createElement("script");
    script.src = new URL("world-model.js", loadWorld.source).href;
    script.onerror = () => reject(new Error("world-model.js is missing"));
    document.head.append(script);
  });
  return loadWorld.promise;
}
loadWorld.source = document.currentScript.src;

/* The figure: called whenever something in it has changed. */
function worldFigure({root, value, find, make, say, bars}) {
  const state = root.worldState ??= wakeWorld(root, find);
  const k = [1, 2, 3, 5, 8, 15, 40, 100, Infinity][value.k];
  const knobs = {tau: value.tau, k, p: value.p};
  say("tau", value.tau.toFixed(2));
  say("k", k == Infinity ? "all" : k);
  say("p", value.p.toFixed(2));
  if (state.prompt != value.prompt) {
    Object.assign(state, {prompt: value.prompt, written: []});
    stopWriting(state, find);
  }
  if (!state.model) return;
  const {model} = state, {tokenizer} = model;
  const ids = [...tokenizer.encode(value.prompt), ...state.written];
  const room = model.config.max_length - 1;
  state.full = ids.length >= room;
  const logits = model.follow(ids);
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
  const before = softmax(logits), after = distribution(logits, order, knobs);
  state.choose = () => draw(after);

  const name = id => id == model.end ? "(end)"
    : tokenizer.decode([id]).replace(/\n/g, "⏎").trim() || "␣";
  const [layer, head] = value.head.split(" ").map(Number);
  const row = model.maps[layer].at(-1)[head], most = Math.max(...row);
  const prompt = ids.length - state.written.length;
  find(".written").replaceChildren(...pieces(tokenizer, ids.slice(0, room))
    .map(({text, first, stop}) => {
      let share = 0;
      for (let i = first; i < stop; i++) share += row[i + 1];
      const part = make(first < prompt ? "span" : "b", "token", text);
      part.style.setProperty("--share", (share / most).toFixed(3));
      return part;
    }));
  const kept = after.filter(share => share > 0).length;
  find("[role=status]").textContent = state.timer ? "It writes."
    : `${ids.length} tokens read, ${state.written.length} of them written; `
      + `${kept} of ${logits.length} can come next.`;
  const top = Math.max(before[order[0]], ...after);
  bars(find(".rows"), order.slice(0, 10).map(id => (
    {name: name(id), text: (100 * after[id]).toFixed(1) + " %",
     fill: after[id] / top, outline: before[id] / top,
     off: after[id] == 0})));
  drawHeads(find(".heads"), model.maps, make);
}

/* Tokens that make whole characters: a letter may be cut in two. */
function pieces(tokenizer, ids) {
  const found = [];
  for (let first = 0, stop = 1; stop <= ids.length; stop++) {
    const text = tokenizer.decode(ids.slice(first, stop));
    if (text.includes("\ufffd") && stop < ids.length && stop < first + 4)
      continue;
    found.push({text, first, stop});
    first = stop;
  }
  return found;
}

/* A square for each head: who looks (down) at whom (across). */
function drawHeads(place, maps, make) {
  maps.forEach((rows, layer) => rows[0].forEach((_, head) => {
    const title = `layer ${layer + 1}, head ${head + 1}`;
    const number = layer * rows[0].length + head, size = rows.length;
    if (!place.children[number]) {
      const canvas = make("canvas", "");
      canvas.setAttribute("role", "img");
      place.append(make("figure", "", canvas, make("figcaption", "", title)));
    }
    const canvas = place.children[number].querySelector("canvas");
    canvas.width = canvas.height = size;
    canvas.setAttribute("aria-label", `${title}: attention of ${size} tokens`
      + `, the last one looks most at number ${
        1 + rows.at(-1)[head].indexOf(Math.max(...rows.at(-1)[head]))}`);
    const context = canvas.getContext("2d");
    const picture = context.createImageData(size, size);
    rows.forEach((row, t) => row[head].forEach((share, s) => picture.data.set(
      [58, 143, 196, 255 * Math.sqrt(share)], 4 * (t * size + s))));
    context.putImageData(picture, 0, 0);
  }));
}

function stopWriting(state, find) {
  clearTimeout(state.timer);
  state.timer = null;
  find("[data-do=write]").textContent = "Write on";
  state.redraw?.();
}

/* Buttons, and the weights as soon as somebody wants them. */
function wakeWorld(root, find) {
  const redraw = () => root.dispatchEvent(new Event("input"));
  const state = {prompt: null, written: [], timer: null, model: null, redraw};
  const load = async () => {
    try {
      state.model = await loadWorld();
      redraw();
    } catch (error) {
      find("[role=status]").textContent = error.message;
    }
  };
  for (const kind of ["focusin", "pointerdown"])
    root.addEventListener(kind, load, {once: true});
  const step = () => {
    const id = state.full ? state.model.end : state.choose();
    if (id == state.model.end) {
      stopWriting(state, find);
      find("[role=status]").textContent = state.full
        ? "The model can read no more." : "Here it ends its text.";
      return;
    }
    state.written.push(id);
    redraw();
  };
  const write = () => {
    step();
    if (state.timer) state.timer = setTimeout(write, 60);
  };
  const actions = {
    step,
    back: () => {
      stopWriting(state, find);
      state.written = [];
      redraw();
    },
    write: () => {
      if (state.timer) return stopWriting(state, find);
      find("[data-do=write]").textContent = "Stop";
      state.timer = setTimeout(write);
    },
  };
  for (const [name, act] of Object.entries(actions))
    find(`[data-do=${name}]`).addEventListener("click", async event => {
      event.stopPropagation();  // it moves no slider
      await load();
      if (state.model) act();
    });
  return state;
}
