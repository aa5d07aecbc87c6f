"use strict";
// Tokens of sampled responses, coloured by what training made of them (tokens/iteration-N.json).

(() => {
  const { iterations, columns } = JSON.parse(document.getElementById("token-data").textContent);
  const at = (id) => document.getElementById(id);
  const state = { iteration: iterations.length - 1, episode: 0, column: "advantage", token: 0 };
  const made = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const short = (value) => value === null || value === undefined ? "–" : String(Number(value.toPrecision(4)));
  const cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
  const shown = (piece) => piece === "" ? "·" : piece.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
  const episodes = () => iterations[state.iteration].episodes;
  const episode = () => episodes()[state.episode];
  const pieces = () => episode().segments.flatMap(([kind, text]) => kind === "response" ? text : []);

  // Blue below the middle, orange above it; without a middle, from pale to violet. The range is that
  // of all iterations, so that one colour means one number over the whole training.
  const ranges = {};
  function range(name) {
    if (ranges[name]) return ranges[name];
    const all = iterations.flatMap((one) => one.episodes.flatMap((e) => (e.columns[name] || []).filter((v) => v !== null)));
    const middle = columns[name][2];
    if (!all.length) return ranges[name] = [0, 1];
    const sorted = all.slice().sort((a, b) => a - b), part = (p) => sorted[Math.round(p * (sorted.length - 1))];
    if (middle === null) return ranges[name] = [part(0.01), part(0.99)];
    const far = Math.max(...[part(0.01), part(0.99), ...(sorted.length < 50 ? [sorted[0], sorted.at(-1)] : [])].map((v) => Math.abs(v - middle))) || Math.max(...all.map((v) => Math.abs(v - middle))) || 1;
    return ranges[name] = [middle - far, middle + far];
  }
  function shade(name, value) {
    const [low, high] = range(name), share = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
    if (columns[name][2] === null) return `hsl(265, 70%, ${96 - 40 * share}%)`;
    const far = 2 * share - 1;
    return `hsl(${far < 0 ? 212 : 28}, ${far === 0 ? 0 : 85}%, ${95 - 38 * Math.abs(far)}%)`;
  }

  function option(select, texts, chosen) {
    select.replaceChildren(...texts.map((text, i) => {
      const node = made("option", text);
      node.value = i;
      node.selected = i === chosen;
      return node;
    }));
  }

  function drawText() {
    const text = at("text"), column = episode().columns[state.column];
    const nodes = [];
    let number = 0;
    for (const [kind, content] of episode().segments) {
      if (kind !== "response") { nodes.push(made("span", content, kind)); continue; }
      for (const piece of content) {
        const node = made("span", shown(piece), "token"), i = number++;
        node.id = `token-${i}`;
        node.setAttribute("role", "option");
        const value = column ? column[i] : null;
        if (value === null || value === undefined) node.classList.add("none");
        else node.style.background = shade(state.column, value);
        node.title = `${columns[state.column][0]} ${short(value)}`;
        node.addEventListener("click", () => activate(i));
        nodes.push(node);
      }
    }
    text.replaceChildren(...nodes);
    activate(Math.min(state.token, number - 1));
  }

  function activate(i) {
    const count = pieces().length;
    if (!count) return at("numbers").replaceChildren();
    state.token = Math.max(0, Math.min(count - 1, i));
    for (const node of document.querySelectorAll("#text .token.active")) {
      node.classList.remove("active");
      node.removeAttribute("aria-selected");
    }
    const node = at(`token-${state.token}`);
    node.classList.add("active");
    node.setAttribute("aria-selected", "true");
    at("text").setAttribute("aria-activedescendant", node.id);
    const facts = [made("span", `token ${state.token + 1} of ${count}: ${JSON.stringify(pieces()[state.token])}`)];
    for (const name of known()) {
      const fact = made("span", `${columns[name][0]} `);
      fact.append(made("b", short(episode().columns[name][state.token])));
      facts.push(fact);
    }
    at("numbers").replaceChildren(...facts.flatMap((fact, k) => k ? [document.createTextNode(" "), fact] : [fact]));
  }

  const known = () => Object.keys(columns).filter((name) => episode().columns[name]);

  function drawTable() {
    const names = known(), head = made("tr");
    head.append(made("th", "token"), ...names.map((name) => made("th", columns[name][0], "number")));
    const rows = pieces().map((piece, i) => {
      const row = made("tr");
      row.append(made("td", JSON.stringify(piece)));
      for (const name of names) {
        const value = episode().columns[name][i], cell = made("td", short(value), "number");
        row.append(cell);
      }
      return row;
    });
    at("token-table").replaceChildren(head, ...rows);
  }

  function drawColumns() {
    const names = known();
    if (!names.includes(state.column)) state.column = names[0];
    at("columns").replaceChildren(...names.map((name) => {
      const button = made("button", columns[name][0]);
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", String(name === state.column));
      button.setAttribute("aria-pressed", String(name === state.column));
      button.tabIndex = name === state.column ? 0 : -1;
      button.addEventListener("click", () => { state.column = name; draw(); });
      return button;
    }));
    const [low, high] = range(state.column);
    at("meaning").textContent = `${columns[state.column][0]}: ${columns[state.column][1]}.`;
    at("legend-low").textContent = short(low);
    at("legend-high").textContent = short(high);
    const stops = [0, 0.25, 0.5, 0.75, 1].map((p) => shade(state.column, low + p * (high - low)));
    at("legend-bar").style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  }

  // The same prompt in other iterations: what became of it over training.
  function drawAlso() {
    const others = iterations.map((one, i) => [i, one.episodes.findIndex((e) => e.prompt === episode().prompt)]).filter(([, k]) => k >= 0);
    at("also").hidden = others.length < 2;
    at("also").replaceChildren(made("span", "This prompt in iteration"), ...others.map(([i, k]) => {
      const reward = iterations[i].episodes[k].reward, button = made("button", String(iterations[i].iteration));
      button.setAttribute("aria-pressed", String(i === state.iteration));
      button.title = `reward ${short(reward)}`;
      button.addEventListener("click", () => { state.iteration = i; state.episode = k; draw(); });
      return button;
    }));
  }

  function draw() {
    option(at("iteration"), iterations.map((one) => String(one.iteration)), state.iteration);
    option(at("episode"), episodes().map((e, i) => `${i + 1}. reward ${e.reward === null ? "none" : short(e.reward)}: ${cut(e.prompt.replace(/\s+/g, " "), 60)}`), state.episode);
    at("earlier").disabled = state.iteration === 0;
    at("later").disabled = state.iteration === iterations.length - 1;
    drawColumns();
    drawText();
    drawTable();
    drawAlso();
    const e = episode(), parts = Object.entries(e.metrics).map(([name, value]) => `${name} ${short(value)}`);
    at("episode-facts").textContent = [`reward ${e.reward === null ? "none applies" : short(e.reward)}`, `ended by ${e.ended || "nothing"}`, ...(e.failed ? ["the environment failed: nothing is learned from it"] : []), ...parts].join(" · ");
  }

  // Stays with the prompt where the other iteration has it.
  function go(iteration) {
    const prompt = episode().prompt;
    state.iteration = Math.max(0, Math.min(iterations.length - 1, iteration));
    state.episode = Math.max(0, episodes().findIndex((e) => e.prompt === prompt));
    draw();
  }

  at("iteration").addEventListener("change", (event) => go(Number(event.target.value)));
  at("episode").addEventListener("change", (event) => { state.episode = Number(event.target.value); draw(); });
  at("earlier").addEventListener("click", () => go(state.iteration - 1));
  at("later").addEventListener("click", () => go(state.iteration + 1));
  at("text").addEventListener("keydown", (event) => {
    const to = { ArrowRight: state.token + 1, ArrowLeft: state.token - 1, Home: 0, End: Infinity }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    activate(to);
  });
  at("columns").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const names = known();
    state.column = names[(names.indexOf(state.column) + step + names.length) % names.length];
    draw();
    at("columns").querySelector("[aria-checked=true]").focus();
  });
  draw();
})();
