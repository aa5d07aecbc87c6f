"use strict";
// What every page has: its theme, and its charts (data of rlmodules/reports/charts.py).

const root = document.documentElement;
root.classList.add("scripts");

// ------------------------------------------------------------------------------- light and dark

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

function remembered(key, value) {
  try {  // some browsers keep nothing for pages from the disk
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch (error) { return null; }
}

function setTheme(theme) {
  if (theme) root.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Show the page ${isDark() ? "light" : "dark"}`);
}

const probe = document.createElement("span");
probe.hidden = true;
function colour(name, opacity = 1) {
  probe.style.color = `var(--${name})`;
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g);
  return `rgba(${red},${green},${blue},${opacity})`;
}

// --------------------------------------------------------------------------------------- charts

const smoothing = () => Number(document.getElementById("smoothing")?.value || 0);

// Exponential moving average without the pull of its start.
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + value;
    total = weight * total + 1;
    return sum / total;
  });
}

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 8 }, gridcolor: colour("line"), linecolor: colour("line"),
    zeroline: false, automargin: true, exponentformat: "e", ...more,
  };
}

function frame(more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    font: { color: colour("ink"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 50, r: 14, t: 12, b: 40 }, hoverlabel: { namelength: -1 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, ...more,
  };
}

function drawCurves({ series, x, y, healthy }) {
  const names = [...new Set(series.map((line) => line.name))];
  const weight = smoothing(), traces = [], labelled = new Set();
  const repeated = names.length > 8 ? ["solid", "dash", "dot", "dashdot"] : ["solid"];
  for (const line of series) {
    const place = names.indexOf(line.name), shade = `series-${place % 8}`;
    const dash = repeated[Math.floor(place / 8) % repeated.length];
    const base = {
      type: "scatter", x: line.x, legendgroup: line.name, name: line.name, connectgaps: false,
    };
    if (line.low && line.high) {
      const at = line.x.map((_, i) => i).filter((i) => line.low[i] !== null && line.high[i] !== null);
      const ends = (values) => at.map((i) => values[i]);
      const edge = { ...base, x: ends(line.x), mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip" };
      traces.push({ ...edge, y: ends(line.low) });
      traces.push({ ...edge, y: ends(line.high), fill: "tonexty", fillcolor: colour(shade, 0.16) });
    }
    const smooths = line.smooth && weight > 0 && line.y.length > 2;
    if (smooths) {
      const behind = { width: 1, color: colour(shade, 0.3), dash };
      traces.push({ ...base, y: line.y, mode: "lines", line: behind, showlegend: false, hoverinfo: "skip" });
    }
    const thin = line.style === "thin", pointed = line.style === "points" || line.y.length < 2;
    traces.push({
      ...base, y: smooths ? smoothed(line.y, weight) : line.y,
      mode: pointed ? "lines+markers" : "lines", marker: { size: 6 },
      line: { width: thin ? 1 : 2, dash, color: colour(shade, thin ? 0.4 : 1) },
      showlegend: !thin && !labelled.has(line.name), hoverinfo: thin ? "skip" : "all",
      hovertemplate: thin ? undefined : "%{y:.4g}",
    });
    if (!thin) labelled.add(line.name);
  }
  const shapes = [], across = axis(x), up = axis(y);
  if (healthy) {  // which must not stretch the axis that the lines are read on
    const values = series.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]).filter((v) => v !== null);
    const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    up.range = [low - room, high + room];
    shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, layer: "below", line: { width: 0 },
      y0: healthy[0] ?? up.range[0], y1: healthy[1] ?? up.range[1], fillcolor: colour("good", 0.09) });
  }
  const places = series.flatMap((line) => line.x);
  if (Math.max(...places) - Math.min(...places) <= 10) across.dtick = 1;
  const layout = frame({ hovermode: "x unified", xaxis: across, yaxis: up, shapes, showlegend: names.length > 1 });
  return [traces, layout];
}

function drawIntervals({ rows, x, zero }) {
  const reversed = [...rows].reverse();
  const trace = {
    type: "scatter", mode: "markers", x: reversed.map((row) => row.value), y: reversed.map((row) => escaped(row.name)),
    marker: { size: 9, color: colour("series-0") }, hovertemplate: "%{y}: %{x:.4g}<extra></extra>",
    error_x: {
      type: "data", symmetric: false, color: colour("series-0"), thickness: 1.5, width: 4,
      array: reversed.map((row) => row.high === null ? 0 : row.high - row.value),
      arrayminus: reversed.map((row) => row.low === null ? 0 : row.value - row.low),
    },
  };
  const shapes = zero ? [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: colour("dim"), dash: "dot", width: 1 } }] : [];
  return [[trace], frame({ shapes, xaxis: axis(x), yaxis: axis("", { type: "category" }), showlegend: false })];
}

function drawParallel({ axes, rows }) {
  const last = axes.length - 1;
  // From blue by grey to orange: told apart by those who do not see red or green, too.
  const shade = (at) => {
    const far = 2 * (at ?? 0.5) - 1, light = isDark() ? 66 : 44;
    return `hsl(${far < 0 ? 215 : 25}, ${Math.round(85 * Math.abs(far)) + 8}%, ${light}%)`;
  };
  const traces = rows.map((row) => ({
    type: "scatter", mode: "lines+markers", name: row.name, x: axes.map((_, i) => i), y: row.at,
    line: { width: 1.6, color: shade(row.at[last]) }, marker: { size: 5 }, connectgaps: false,
    text: row.said, hovertemplate: `%{text}<extra>${escaped(row.name)}</extra>`,
  }));
  const shapes = axes.map((_, i) => ({ type: "line", x0: i, x1: i, y0: 0, y1: 1, line: { color: colour("dim"), width: 1 }, layer: "below" }));
  const annotations = axes.flatMap((one, i) => one.ticks.map(([at, text]) => ({
    x: i, y: at, text: escaped(text), showarrow: false, xanchor: i === last ? "right" : "left",
    xshift: i === last ? -7 : 7, font: { size: 11, color: colour("dim") }, bgcolor: colour("ground", 0.75),
  })));
  const xaxis = axis("", {
    tickvals: axes.map((_, i) => i), ticktext: axes.map((one) => escaped(one.name)),
    range: [-0.1, last + 0.1], showgrid: false,
  });
  return [traces, frame({ shapes, annotations, xaxis, yaxis: { visible: false, range: [-0.06, 1.06] }, showlegend: false, hovermode: "closest" })];
}

// Plotly takes some tags in what it writes; names are text.
function escaped(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

const KINDS = { curves: drawCurves, intervals: drawIntervals, parallel: drawParallel };

function drawChart(figure) {
  const data = figure.chart ??= JSON.parse(figure.querySelector("script").textContent);
  const [traces, layout] = KINDS[data.kind](data);
  for (const trace of traces) trace.name = escaped(trace.name ?? "");
  const options = { displaylogo: false, responsive: true, displayModeBar: false };
  const plot = figure.querySelector(".plot");
  if (data.kind === "intervals") plot.style.height = `${70 + 30 * data.rows.length}px`;
  Plotly.react(plot, traces, layout, options);
  readByKeys(figure, plot, data);
}

// Left and right go from point to point; the line below a chart says what is there.
function readByKeys(figure, plot, data) {
  if (figure.readable) return;
  figure.readable = true;
  const lines = data.kind === "curves" ? data.series.filter((line) => line.style !== "thin") : [];
  const places = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const rows = data.kind === "intervals" ? data.rows : data.kind === "parallel" ? data.rows : places;
  const short = (value) => value === null || value === undefined ? "none" : Number(value.toPrecision(4)).toString();
  const say = (i) => {
    if (data.kind === "intervals")
      return `${rows[i].name}: ${short(rows[i].value)}` + (rows[i].low === null ? "" : `, from ${short(rows[i].low)} to ${short(rows[i].high)}`);
    if (data.kind === "parallel") return `${rows[i].name}: ` + data.axes.map((one, k) => `${one.name} ${rows[i].said[k]}`).join(", ");
    const there = lines.map((line) => [line.name, line.y[line.x.indexOf(places[i])]]).filter(([, y]) => y !== undefined);
    return `${data.x} ${short(places[i])}: ` + there.map(([name, y]) => `${name} ${short(y)}`).join(", ");
  };
  let at = -1;
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !rows.length) return;
    event.preventDefault();
    at = Math.max(0, Math.min(rows.length - 1, at + step));
    figure.querySelector(".reading").textContent = say(at);
    if (data.kind === "curves") {
      const points = plot.data.flatMap((trace, curveNumber) => {
        const pointNumber = trace.hoverinfo === "skip" ? -1 : trace.x.indexOf(places[at]);
        return pointNumber < 0 ? [] : [{ curveNumber, pointNumber }];
      });
      Plotly.Fx.hover(plot, points);
    }
  });
}

function drawCharts() {
  for (const figure of document.querySelectorAll(".chart")) drawChart(figure);
}

document.addEventListener("DOMContentLoaded", () => {
  document.body.append(probe);
  setTheme(remembered("theme"));
  document.getElementById("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    remembered("theme", theme);
    setTheme(theme);
    drawCharts();
  });
  dark.addEventListener("change", () => { setTheme(); drawCharts(); });
  document.getElementById("smoothing")?.addEventListener("input", (event) => {
    document.getElementById("smoothing-said").textContent = Number(event.target.value).toFixed(2);
    drawCharts();
  });
  drawCharts();
});
