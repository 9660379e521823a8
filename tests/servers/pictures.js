// Takes pictures of the console of a run of `pipelines/telemetry.yaml`, and of a frame of `nexus top`.
//
//     node pictures.js URL FOLDER TOP_FRAME
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { chromium } = require('playwright-core');

const [url, folder, frame] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox'] });
  const page = await browser.newPage({ viewport: { width: 1180, height: 760 }, colorScheme: 'light' });
  const picture = (name) => page.screenshot({ path: path.join(folder, name + '.png') });

  await page.goto(url);
  await page.locator('.node[data-name="vibranium.hot_sites"]').waitFor();
  await page.locator('.edge.flows, .edge.held').first().waitFor({ state: 'attached' });
  await page.waitForTimeout(4000); // Rates are known.
  await picture('console-graph');

  await page.click('#tab-sample');
  await page.selectOption('#sample-table', 'gold.site_minutes');
  await page.locator('#sample-rows td').first().waitFor();
  await picture('console-sample');

  await page.click('#tab-quarantine');
  await page.locator('.rule', { hasText: 'sane_temperature' }).waitFor();
  await page.locator('.rule', { hasText: 'decode' }).waitFor();
  await picture('console-quarantine');

  await page.click('#tab-map');
  await page.selectOption('#map-table', 'silver.readings');
  await page.locator('.point').nth(100).waitFor();
  await page.waitForTimeout(3000); // Further rows join the first.
  await picture('console-map');

  // A terminal's frame, in a terminal's colours.
  const text = fs.readFileSync(frame, 'utf8').replace(/&/g, '&amp;').replace(/</g, '&lt;');
  await page.setContent('<style>body { margin: 0; padding: 16px 20px; width: max-content; background: #1b1f24; color: #d6dde6; '
    + 'font: 13px/1.35 "DejaVu Sans Mono", monospace; } pre { margin: 0; font: inherit; }</style><pre>' + text + '</pre>');
  await page.locator('body').screenshot({ path: path.join(folder, 'top.png') });
  await browser.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
