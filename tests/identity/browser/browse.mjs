// A person at a browser: Chromium, headless. Told as JSON by the first argument, it opens the pages of `open` one after
// another, on each fills in the form's fields that `fields` names, and submits it, until its address begins with
// `until`. Prints one line of JSON: {"url": where it ended, "text": what it reads there, "pages": headings on the way}.
// It reaches this machine only.
import chromium from '@sparticuz/chromium';
import puppeteer from 'puppeteer-core';

const MOST_PAGES = 15;
const PATIENCE = 60_000;
const { open, fields, until } = JSON.parse(process.argv[2]);

const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  headless: 'shell',
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
  ],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  const pages = [];
  for (const url of open) {
    await page.goto(url, { waitUntil: 'load' });
  }
  while (!page.url().startsWith(until)) {
    pages.push(await page.evaluate(() => (document.querySelector('h1') ?? document.body).innerText));
    if (pages.length > MOST_PAGES) throw new Error(`leads nowhere: ${page.url()}`);
    for (const [name, value] of Object.entries(fields)) {
      const field = await page.$(`form input[name="${name}"]`);
      if (field) await field.type(value);
    }
    const button = await page.waitForSelector('form [type="submit"]');
    await Promise.all([page.waitForNavigation({ waitUntil: 'load' }), button.click()]);
  }
  const text = await page.evaluate(() => document.body.innerText);
  console.log(JSON.stringify({ url: page.url(), text, pages }));
} finally {
  await browser.close();
}
