// Looks at the console of a running pipeline with Chromium, and uses it as people do.
//
//     node browser.js URL TOKEN [FOLDER]
//
// Fails with what is wrong. With a FOLDER, pictures of the views are put there.
'use strict';

const assert = require('node:assert');
const path = require('node:path');
const { chromium } = require('playwright-core');

const VIEWS = ['graph', 'tables', 'sample', 'quarantine', 'epochs', 'map', 'plan'];
const [url, token, folder] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox'] });
  const page = await browser.newPage({ viewport: { width: 1280, height: 860 }, colorScheme: 'light' });
  const wrong = [];
  page.on('pageerror', (error) => wrong.push(String(error)));
  // That the token is missing at first is how the page finds out that it needs one.
  page.on('console', (said) => { if (said.type() === 'error' && !said.text().includes('401')) wrong.push(said.text()); });
  page.on('request', (request) => { if (!request.url().startsWith(url)) wrong.push('asks ' + request.url()); });
  page.on('dialog', (dialog) => dialog.dismiss());
  const picture = async (name) => { if (folder) await page.screenshot({ path: path.join(folder, name + '.png') }); };
  const shown = (view) => page.locator('#' + view + ':visible').waitFor();

  await page.goto(url);
  await page.locator('#ask[open]').waitFor();
  await page.fill('#token', token);
  await page.keyboard.press('Enter');

  // The graph: each source and table, with its rate, its edges and its sinks.
  for (const name of ['ticks', 'bronze.ticks', 'silver.ticks', 'gold.seconds']) {
    await page.locator(`.node[data-name="${name}"]`).waitFor();
  }
  assert.strictEqual(await page.locator('.edge').count(), 3);
  assert.ok(await page.locator('.node[data-name="silver.ticks"] .pill').count() >= 2, 'sinks are missing');
  await page.locator('.edge.flows, .edge.held').first().waitFor({ state: 'attached' }); // A straight line has no height.
  assert.strictEqual(await page.textContent('#name'), 'watched');
  assert.strictEqual(await page.textContent('#state'), 'running');
  await page.waitForTimeout(2500);
  await picture('graph');

  // By the keyboard: from the graph to a sample, which is text whatever it holds, and to the next view.
  // The drawing may be renewed between the finding of the node and its focus.
  const focused = () => page.evaluate(() => document.activeElement.getAttribute('data-name'));
  while (await focused() !== 'silver.ticks') await page.locator('.node[data-name="silver.ticks"]').focus();
  await page.waitForTimeout(2500);
  assert.strictEqual(await focused(), 'silver.ticks', 'the focus is lost when the drawing is renewed');
  await page.keyboard.press('Enter');
  await shown('sample');
  await page.locator('#sample-rows td', { hasText: '<b>yuma</b>' }).first().waitFor();
  assert.strictEqual(await page.inputValue('#sample-table'), 'silver.ticks');
  assert.strictEqual(await page.locator('#sample b').count(), 0, 'a value became markup');
  assert.ok(await page.locator('#sample-rows td.masked').count() > 0, 'nothing is masked');
  assert.ok(!(await page.content()).toLowerCase().includes('example.org'), 'a masked value is shown');
  await picture('sample');
  await page.locator('#tab-sample').focus();
  await page.keyboard.press('ArrowRight');
  await shown('quarantine');
  await page.locator('.rule', { hasText: 'sane_temperature' }).waitFor();
  assert.match(await page.textContent('.rule li'), /temp_c/);
  await picture('quarantine');

  // By the mouse, and slowly: the drawing is not renewed under a button that is down.
  await page.click('#tab-graph');
  await page.locator('.node[data-name="gold.seconds"]').hover();
  await page.mouse.down();
  await page.waitForTimeout(2500);
  await page.mouse.up();
  await shown('sample');
  assert.strictEqual(await page.inputValue('#sample-table'), 'gold.seconds');

  await page.click('#tab-epochs');
  await page.locator('.steps span').first().waitFor();
  await picture('epochs');
  await page.click('#tab-map');
  await page.locator('.point').nth(20).waitFor();
  await page.waitForTimeout(3000);
  await picture('map');
  await page.click('#tab-plan');
  await page.locator('pre', { hasText: 'SELECT' }).waitFor();
  await page.click('#tab-tables');
  await page.locator('#position-rows td').first().waitFor();

  // Orders.
  await page.click('#pause');
  await page.locator('#state.paused').waitFor();
  assert.strictEqual(await page.textContent('#pause'), 'Resume');
  await page.click('#pause');
  await page.locator('#state.running').waitFor();
  await page.click('#drain'); // The question is answered by no.
  assert.strictEqual(await page.textContent('#state'), 'running');

  // Dark, and on a narrow screen.
  const colour = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await colour();
  await page.emulateMedia({ colorScheme: 'dark' });
  assert.notStrictEqual(await colour(), light);
  await page.click('#tab-graph');
  await page.waitForTimeout(1200);
  await picture('graph-dark');
  await page.setViewportSize({ width: 360, height: 740 });
  for (const view of VIEWS) {
    await page.click('#tab-' + view);
    await shown(view);
    await page.waitForTimeout(1200);
    const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    assert.ok(wide <= room, `${view} is ${wide} wide on a screen of ${room}`);
    if (view === 'graph') await picture('graph-narrow');
  }
  await browser.close();
  assert.deepStrictEqual(wrong, []);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
