// The console of a running pipeline: it asks /api/v1 and shows the answers.
//
// Invariant: what comes from the API is only ever put into the page as text, never as markup.
'use strict';

const ASK_EVERY_MS = 1000;
const STEPS = ['cut', 'decode', 'transform', 'prepare', 'record', 'commit'];
const HELD = 0.1; // From this share of the time on, a channel counts as one that holds its sender up.
const POINTS_MAX = 1000;
const SVG = 'http://www.w3.org/2000/svg';

const $ = (id) => document.getElementById(id);
const state = { view: 'graph', plan: null, pipeline: null, points: new Map(), starting: false };

// ---- Making elements ----

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

/** Puts a table into a folder: rows of cells, each a text or { text, class, title }. */
function table(into, heads, rows, empty) {
  if (!rows.length) return into.replaceChildren(el('p', { class: 'note' }, '\u00a0' + empty));
  const head = el('tr', {}, ...heads.map((h) => el('th', { scope: 'col', class: h.class, title: h.title }, h.text ?? h,
    h.type ? el('span', { class: 'type' }, h.type) : null)));
  const cell = (c) => c instanceof Node ? el('td', {}, c)
    : el('td', { class: c?.class, title: c?.title }, c?.text ?? String(c ?? ''));
  into.replaceChildren(el('table', {}, el('thead', {}, head),
    el('tbody', {}, ...rows.map((row) => el('tr', {}, ...row.map(cell))))));
}

/** Keeps the choices of a select as they are unless they have changed. */
function choices(select, names) {
  if ([...select.options].map((o) => o.value).join('\n') === names.join('\n')) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => el('option', { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

// ---- Writing numbers and times ----

const count = (n) => Math.round(n).toLocaleString('en').replaceAll(',', '\u2009');
function short(n) {
  for (const [unit, size] of [['G', 1e9], ['M', 1e6], ['k', 1e4]]) {
    if (n >= size) return (n / (unit === 'k' ? 1e3 : size)).toFixed(1) + '\u2009' + unit;
  }
  return count(n);
}
function bytes(n) {
  let unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit += 1; }
  return (unit ? n.toFixed(1) : n) + '\u2009' + ['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit];
}
function span(s) {
  if (s < 1) return Math.round(s * 1000) + '\u2009ms';
  if (s < 120) return s.toFixed(1) + '\u2009s';
  if (s < 7200) return Math.round(s / 60) + '\u2009min';
  return s < 172800 ? Math.round(s / 3600) + '\u2009h' : Math.round(s / 86400) + '\u2009d';
}
const time = (ms) => ms === null ? '\u2013' : new Date(ms).toISOString().replace('T', ' ').slice(0, 19);
const clock = (ms) => new Date(ms).toLocaleTimeString();
const percent = (share) => Math.round(share * 100) + '\u2009%';

// ---- Asking the API ----

class Away extends Error {}

async function ask(path, method = 'GET') {
  const token = sessionStorage.getItem('nexus-token');
  const headers = token ? { Authorization: 'Bearer ' + token } : {};
  let answer;
  try {
    answer = await fetch('/api/v1/' + path, { method, headers });
  } catch {
    throw new Away('the process does not answer');
  }
  const body = await answer.json();
  if (answer.ok) return body;
  if (answer.status === 401 && !$('ask').open) $('ask').showModal();
  throw new Away(body.error);
}

async function order(what) {
  try {
    await ask(what, 'POST');
  } catch (error) {
    return tell(error.message);
  }
  await refresh();
}

function tell(trouble) {
  $('trouble').hidden = !trouble;
  if ($('trouble').textContent !== trouble) $('trouble').textContent = trouble;
}

// ---- The head of the page ----

function showHead(pipeline, memory, rules) {
  $('name').textContent = pipeline.name;
  $('description').textContent = pipeline.description ?? '';
  document.title = pipeline.name + ' \u2013 Nexus';
  badge(pipeline.ready ? pipeline.state : 'not ready', pipeline.ready ? pipeline.state : 'late');
  tell(pipeline.not_ready ?? '');
  const paused = pipeline.state === 'paused', ends = pipeline.state === 'draining';
  $('pause').textContent = paused ? 'Resume' : 'Pause';
  $('pause').disabled = $('drain').disabled = !pipeline.takes_orders || ends;
  const ago = pipeline.committed_at_ms === null ? '\u2013' : span(Math.max(0, Date.now() - pipeline.committed_at_ms) / 1000);
  const figures = [['rows a second', short(pipeline.rows_per_s)], ['read a second', bytes(Math.round(pipeline.bytes_per_s))],
    ['lag', pipeline.lag_ms === null ? '\u2013' : span(pipeline.lag_ms / 1000)], ['last commit', ago === '\u2013' ? ago : ago + ' ago'],
    ['waits for commit', span(pipeline.waiting_s)], ['epochs', count(pipeline.epochs)],
    ['memory', memory.resident_bytes === null ? '\u2013' : bytes(memory.resident_bytes)]];
  $('figures').replaceChildren(...figures.map(([name, text]) => el('div', {}, el('dt', {}, name), el('dd', {}, text))));
  const bad = rules.reduce((sum, rule) => sum + rule.rows, 0);
  $('bad').textContent = bad ? short(bad) : '';
}

function badge(text, kind) {
  $('state').textContent = text;
  $('state').className = 'badge ' + kind;
}

// ---- The graph ----

/** Gives each source and table its layer: one more than the highest of what it reads. */
function layers(nodes, edges) {
  const depth = new Map(nodes.map((node) => [node.name, 0]));
  for (const node of nodes) { // Each table stands behind those that it reads.
    for (const edge of edges) {
      if (edge.to === node.name) depth.set(node.name, Math.max(depth.get(node.name), depth.get(edge.from) + 1));
    }
  }
  const found = [];
  for (const node of nodes) (found[depth.get(node.name)] ??= []).push(node);
  return found;
}

/** Places the nodes: layers from left to right, or below one another where there is no room. */
function places(nodes, edges, room) {
  const found = layers(nodes, edges), at = new Map();
  const wide = 236, high = 86, gap = 56;
  const needed = found.length * (wide + gap) - gap;
  if (room >= Math.min(needed, 700)) {
    const tallest = Math.max(...found.map((layer) => layer.length));
    found.forEach((layer, x) => layer.forEach((node, y) =>
      at.set(node.name, [x * (wide + gap) + 2, (y + (tallest - layer.length) / 2) * (high + 24) + 2])));
    return { at, wide, high, across: true, size: [needed + 4, tallest * (high + 24) - 20] };
  }
  const narrow = Math.max(200, room - 44);
  found.flat().forEach((node, y) => at.set(node.name, [2, y * (high + 18) + 2]));
  return { at, wide: narrow, high, across: false, size: [narrow + 44, at.size * (high + 18)] };
}

/** Whether a button of the mouse, or a finger, is down on the drawing: one that is drawn anew would lose the click. */
let pressed = false;

function showGraph(pipeline, sources, tables, channels) {
  if (pressed) return;
  const nodes = pipeline.nodes.filter((node) => node.kind !== 'sink');
  const names = new Set(nodes.map((node) => node.name));
  const edges = pipeline.edges.filter((edge) => names.has(edge.to));
  const sinks = pipeline.edges.filter((edge) => !names.has(edge.to));
  const channel = new Map(channels.map((c) => [c.name, c]));
  const told = new Map([...sources, ...tables].map((t) => [t.name, t]));
  const { at, wide, high, across, size } = places(nodes, edges, $('drawing').clientWidth || 800);
  const culprits = new Set(channels.filter((c) => c.blocked_share >= HELD).map((c) => c.to));
  const lines = edges.map((edge, number) => {
    const [x1, y1] = at.get(edge.from), [x2, y2] = at.get(edge.to), c = channel.get(edge.channel);
    const bend = across ? 30 : 12 + (number % 3) * 9;
    const path = across
      ? `M${x1 + wide},${y1 + high / 2} C${x1 + wide + bend},${y1 + high / 2} ${x2 - bend},${y2 + high / 2} ${x2},${y2 + high / 2}`
      : `M${x1 + wide},${y1 + high * 0.7} h${bend} V${y2 + high * 0.3} h${-bend}`;
    const rate = told.get(edge.from)?.rows_per_s ?? 0;
    const kind = !c ? 'still' : c.blocked_share >= HELD ? 'held' : rate > 0 ? 'flows' : '';
    const title = c ? `${edge.from} to ${edge.to}: ${bytes(c.bytes)} of ${bytes(c.limit_bytes)} wait` : `${edge.from} is joined`;
    return svg('path', { class: 'edge ' + kind, d: path }, svg('title', {}, title));
  });
  const boxes = nodes.map((node) => {
    const [x, y] = at.get(node.name), t = told.get(node.name);
    const open = () => choose(node.kind === 'table' ? 'sample' : 'tables', node.name);
    const pills = sinks.filter((edge) => edge.from === node.name).map((edge, place) => {
      const c = channel.get(edge.channel), kind = edge.to.split('/').pop();
      const held = c && c.blocked_share >= HELD;
      return svg('g', { class: 'pill' + (held ? ' held' : ''), transform: `translate(${12 + place * 72},${high - 24})` },
        svg('rect', { width: 69, height: 17, rx: 8 }), svg('text', { x: 34.5, y: 12, 'text-anchor': 'middle' }, kind.slice(0, 11)),
        svg('title', {}, c ? `${edge.to}: ${bytes(c.bytes)} of ${bytes(c.limit_bytes)} wait` : edge.to));
    });
    const rate = t ? `${short(t.rows_per_s)} rows/s` : 'static';
    const more = t ? `${short(node.kind === 'table' ? t.rows_out : t.rows)} rows` : '';
    return svg('g', { class: 'node' + (culprits.has(node.name) ? ' culprit' : ''), transform: `translate(${x},${y})`, tabindex: 0,
      role: 'button', 'data-name': node.name, 'aria-label': `${node.kind} ${node.name}, ${rate}`, onclick: open,
      onkeydown: (event) => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); open(); } } },
      svg('rect', { class: 'box', width: wide, height: high, rx: 8 }),
      svg('rect', { class: 'stripe ' + (node.tier ?? node.kind), width: 5, height: high, rx: 2 }),
      svg('text', { class: 'label', x: 14, y: 21 }, node.name.length > 26 ? node.name.slice(0, 25) + '\u2026' : node.name),
      svg('text', { class: 'small', x: 14, y: 40 }, rate), svg('text', { class: 'small', x: wide - 10, y: 40, 'text-anchor': 'end' }, more),
      svg('title', {}, node.name), ...pills);
  });
  const focused = document.activeElement?.getAttribute?.('data-name');
  const drawing = svg('svg', { viewBox: `0 0 ${size[0]} ${size[1]}`, role: 'group', 'aria-label': 'Graph of sources and tables' }, ...lines, ...boxes);
  drawing.style.maxWidth = size[0] * 1.25 + 'px';
  $('drawing').replaceChildren(drawing);
  if (focused) $('drawing').querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  showBlocks(channels);
}

function showBlocks(channels) {
  const held = channels.filter((c) => c.blocked_share >= 0.01).sort((a, b) => b.blocked_share - a.blocked_share).slice(0, 8);
  const lines = held.map((c) => el('li', {}, el('span', {}, `${c.to} holds up ${c.from}`),
    el('meter', { min: 0, max: 1, high: HELD, value: c.blocked_share, 'aria-label': 'part of the time' }), el('span', { class: 'share' }, percent(c.blocked_share))));
  $('blocks').replaceChildren(...(lines.length ? lines : [el('li', { class: 'all' }, 'Nobody is held up.')]));
}

// ---- Tables ----

function showTables(sources, tables, positions) {
  const bad = (n) => n ? { text: count(n), class: 'bad' } : '0';
  table($('source-rows'), ['source', 'rows/s', 'bytes/s', 'rows', 'bytes', 'lag', 'event time', 'quarantined'], sources.map((s) => [s.name,
    short(s.rows_per_s), bytes(Math.round(s.bytes_per_s)), count(s.rows), bytes(s.bytes), s.lag_ms === null ? '\u2013' : span(s.lag_ms / 1000),
    time(s.watermark_ms), bad(s.quarantined)]), 'There are no sources.');
  table($('table-rows'), ['table', 'rows/s', 'in', 'out', 'late', 'dropped', 'duplicates', 'quarantined', 'state', 'event time'],
    tables.map((t) => [t.name, short(t.rows_per_s), count(t.fates.in), count(t.fates.out), bad(t.fates.late), count(t.fates.dropped),
      count(t.fates.duplicates), bad(t.fates.quarantined), bytes(t.state_bytes), time(t.watermark_ms)]), 'There are no tables.');
  table($('position-rows'), ['source', { text: 'shard, object or file', class: 'text' }, { text: 'read up to', class: 'text' }], positions.flatMap((s) =>
    s.first.slice(0, 20).map((p) => [s.source, { text: p.partition, class: 'text' }, { text: `${p.at} ${p.position ?? ''}`, class: 'text' }])),
  'No epoch is recorded yet.');
}

// ---- Samples and the map ----

function cellOf(row, column) {
  if (column.masked) return { text: 'masked', class: 'masked' };
  const value = row[column.name];
  if (value === null || value === undefined) return { text: 'NULL', class: 'none' };
  const text = typeof value === 'object' ? JSON.stringify(value) : String(value);
  return { text, class: typeof value === 'number' ? '' : 'text long', title: text.length > 40 ? text : null };
}

async function showSample() {
  choices($('sample-table'), state.plan.tables.map((t) => t.name));
  if ($('hold').checked && $('sample-rows').firstChild) return;
  const sample = await ask(`tables/${encodeURIComponent($('sample-table').value)}/sample`);
  const heads = sample.columns.map((c) => ({ text: c.name, type: c.type, class: 'text' }));
  table($('sample-rows'), heads, sample.rows.map((row) => sample.columns.map((c) => cellOf(row, c))), 'No row has come yet.');
}

/** Gives the names of the columns that hold a latitude and a longitude, if there are such. */
function placeOf(columns) {
  const named = (names) => columns.find((c) => !c.masked && names.includes(c.name.toLowerCase()))?.name;
  const lat = named(['lat', 'latitude']), lon = named(['lon', 'lng', 'long', 'longitude']);
  return lat && lon ? [lat, lon] : null;
}

async function showMap() {
  const placed = state.plan.tables.filter((t) => placeOf(t.columns));
  choices($('map-table'), placed.map((t) => t.name));
  if (!placed.length) {
    $('map-note').textContent = 'No table has columns called lat or latitude and lon, lng or longitude.';
    return $('world-map').replaceChildren();
  }
  const name = $('map-table').value, points = state.points.get(name) ?? new Map();
  const sample = await ask(`tables/${encodeURIComponent(name)}/sample`);
  const [lat, lon] = placeOf(sample.columns);
  for (const row of sample.rows.toReversed()) {
    const [y, x] = [row[lat], row[lon]];
    if (typeof x !== 'number' || typeof y !== 'number' || Math.abs(y) > 90 || Math.abs(x) > 180) continue;
    points.delete(`${y} ${x}`);
    points.set(`${y} ${x}`, { x, y, title: sample.columns.slice(0, 6).map((c) => `${c.name}: ${cellOf(row, c).text}`).join('\n') });
  }
  for (const old of [...points.keys()].slice(0, Math.max(0, points.size - POINTS_MAX))) points.delete(old);
  state.points.set(name, points);
  drawMap([...points.values()]);
  $('map-note').textContent = `${points.size} places of the last rows of ${name}. Coastlines: Natural Earth.`;
}

/** Gives the part of the world to draw: all points with some room, twice as wide as high. */
function viewOf(points) {
  if ($('world').checked || !points.length) return [-180, -90, 360, 180];
  const [xs, ys] = [points.map((p) => p.x), points.map((p) => -p.y)];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const high = Math.min(180, Math.max((right - left) / 2, bottom - top, 4) * 1.3), wide = high * 2;
  const within = (middle, size, most) => Math.min(Math.max(middle - size / 2, -most), most - size);
  return [within((left + right) / 2, wide, 180), within((top + bottom) / 2, high, 90), wide, high];
}

function drawMap(points) {
  const view = viewOf(points), high = view[3];
  const step = [30, 15, 10, 5, 2, 1].find((s) => s <= high / 3) ?? 1;
  const lines = [], size = high / 45;
  for (let x = Math.ceil(view[0] / step) * step; x <= view[0] + view[2]; x += step) {
    lines.push(svg('path', { class: 'graticule', 'stroke-width': high / 500, d: `M${x},-90 V90` }),
      svg('text', { x: x + size / 4, y: view[1] + high - size / 3, 'font-size': size }, Math.abs(x) + '\u00b0' + (x < 0 ? 'W' : x > 0 ? 'E' : '')));
  }
  for (let y = Math.ceil(view[1] / step) * step; y <= view[1] + high; y += step) {
    lines.push(svg('path', { class: 'graticule', 'stroke-width': high / 500, d: `M-180,${y} H180` }),
      svg('text', { x: view[0] + size / 3, y: y - size / 4, 'font-size': size }, Math.abs(y) + '\u00b0' + (y < 0 ? 'N' : y > 0 ? 'S' : '')));
  }
  const dots = points.map((p) => svg('circle', { class: 'point', cx: p.x, cy: -p.y, r: high / 90, 'stroke-width': high / 500 }, svg('title', {}, p.title)));
  $('world-map').replaceChildren(svg('svg', { viewBox: view.join(' '), role: 'img', 'aria-label': `Map with ${points.length} places` },
    svg('image', { href: '/coast.svg', x: -180, y: -90, width: 360, height: 180 }), ...lines, ...dots));
}

// ---- Quarantine, epochs, plan ----

function showQuarantine(rules) {
  const cards = rules.map((rule) => el('article', { class: 'rule' },
    el('h2', {}, el('span', {}, `${rule.of}: ${rule.rule}`), el('span', {}, count(rule.rows) + ' rows')),
    el('ul', { class: 'plain' }, ...rule.recent.map((r) => el('li', {}, r.reason,
      el('span', { class: 'place' }, [clock(r.at_ms), r.partition, r.offset && 'at ' + r.offset].filter(Boolean).join(' \u00b7 ')))))));
  $('rules').replaceChildren(...(cards.length ? cards : [el('p', { class: 'note' }, 'Nothing has gone to the quarantine in this run.')]));
}

function showEpochs(epochs, memory) {
  $('legend').replaceChildren(...STEPS.map((step) => el('li', {}, el('i', { class: step }), step)));
  const longest = Math.max(0.001, ...epochs.map((e) => e.total_s));
  table($('epoch-rows'), ['epoch', 'closed', 'took', { text: 'steps', class: 'text' }, 'records', 'rows out', 'quarantined', 'stored'], epochs.map((e) => {
    const bar = el('div', { class: 'steps', title: e.steps.map((s) => `${s.step} ${span(s.seconds)}${s.last ? ', last ' + s.last : ''}`).join('\n') });
    for (const s of e.steps) {
      const part = el('span', { class: s.step });
      part.style.width = (s.seconds / longest) * 100 + '%';
      bar.append(part);
    }
    return [count(e.epoch), clock(e.closed_at_ms), span(e.total_s), bar, count(e.records), count(e.rows_out), count(e.quarantined), bytes(e.bytes)];
  }), 'No epoch is committed yet.');
  table($('memory-rows'), ['what', 'bytes'], [['limit', bytes(memory.limit_bytes)], ['process', bytes(memory.resident_bytes ?? 0)],
    ...Object.entries(memory.components).map(([name, n]) => [name, bytes(n)]), ['spooled', bytes(memory.spooled_bytes)]], '');
}

function showPlan() {
  choices($('plan-table'), state.plan.tables.map((t) => t.name));
  const t = state.plan.tables.find((known) => known.name === $('plan-table').value);
  if (!t || $('plan-text').dataset.of === t.name + t.plan) return;
  $('plan-text').dataset.of = t.name + t.plan;
  const columns = el('div', { class: 'wide', tabindex: 0 });
  table(columns, ['column', { text: 'type', class: 'text' }, { text: '', class: 'text' }], t.columns.map((c) => [c.name, { text: c.type, class: 'text' },
    { text: [c.name === t.event_time && 'event time', c.masked && 'masked'].filter(Boolean).join(', '), class: 'text' }]), '');
  $('plan-text').replaceChildren(...[t.description && el('p', {}, t.description),
    el('p', { class: 'note' }, `reads ${t.reads.join(', ')}; goes to ${t.sinks.join(', ') || 'no sink of the file'}${t.state ? '; keeps ' + t.state : ''}`),
    el('h2', {}, 'SQL'), el('pre', { tabindex: 0 }, t.sql.trim()), el('h2', {}, 'Columns'), columns,
    el('h2', {}, 'How it is run'), el('pre', { tabindex: 0 }, t.plan.trim())].filter(Boolean));
}

// ---- Views and the loop ----

function choose(view, name) {
  state.view = view;
  for (const tab of document.querySelectorAll('[role=tab]')) {
    const chosen = tab.id === 'tab-' + view;
    tab.setAttribute('aria-selected', String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute('aria-controls')).hidden = !chosen;
  }
  if (name && view === 'sample') {
    choices($('sample-table'), state.plan.tables.map((t) => t.name));
    $('sample-table').value = name;
  }
  history.replaceState(null, '', '#' + view);
  return refresh();
}

async function show() {
  const [pipeline, memory, { rules }] = await Promise.all([ask('pipeline'), ask('memory'), ask('quarantine')]);
  state.plan ??= await ask('plan');
  showHead(pipeline, memory, rules);
  if (state.pipeline?.generation !== pipeline.generation || state.pipeline?.edges.length !== pipeline.edges.length) state.plan = await ask('plan');
  state.pipeline = pipeline;
  switch (state.view) {
    case 'graph': {
      const [{ sources }, { tables }, { channels }] = await Promise.all([ask('sources'), ask('tables'), ask('channels')]);
      return showGraph(pipeline, sources, tables, channels);
    }
    case 'tables': {
      const [{ sources }, { tables }, positions] = await Promise.all([ask('sources'), ask('tables'), ask('positions')]);
      return showTables(sources, tables, positions.sources);
    }
    case 'sample': return showSample();
    case 'quarantine': return showQuarantine(rules);
    case 'epochs': return showEpochs((await ask('epochs')).epochs, memory);
    case 'map': return showMap();
    case 'plan': return showPlan();
  }
}

async function refresh() {
  try {
    await show();
  } catch (error) {
    if (!(error instanceof Away)) throw error;
    badge('away', 'away');
    $('pause').disabled = $('drain').disabled = true;
    tell(error.message);
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((wake) => setTimeout(wake, ASK_EVERY_MS));
  }
}

function begin() {
  const tabs = [...document.querySelectorAll('[role=tab]')];
  tabs.forEach((tab, place) => {
    tab.addEventListener('click', () => choose(tab.getAttribute('aria-controls')));
    tab.addEventListener('keydown', (event) => {
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      choose(next.getAttribute('aria-controls'));
      next.focus();
    });
  });
  for (const id of ['sample-table', 'map-table', 'plan-table', 'world', 'hold']) $(id).addEventListener('change', refresh);
  $('drawing').addEventListener('pointerdown', () => { pressed = true; });
  for (const up of ['pointerup', 'pointercancel']) addEventListener(up, () => { pressed = false; });
  $('pause').addEventListener('click', () => order(state.pipeline?.state === 'paused' ? 'resume' : 'pause'));
  $('drain').addEventListener('click', () => { if (confirm('Commit what has been read, and end the run?')) order('drain'); });
  $('ask').addEventListener('close', () => {
    sessionStorage.setItem('nexus-token', $('token').value.trim());
    $('token').value = '';
    refresh();
  });
  const wanted = location.hash.slice(1);
  if (tabs.some((tab) => tab.id === 'tab-' + wanted)) state.view = wanted;
  choose(state.view);
  run();
}

begin();
