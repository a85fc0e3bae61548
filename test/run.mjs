/**
 * `npm test` after its set-up: the checks (format and lint, types, boundaries, unused code) one after the other beside
 * one vitest run, and at the end one line with the true counts, in which each check counts as a test. Arguments go to
 * vitest, e.g. `node test/run.mjs --project unit`.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
const folder = '.lab/test';
const report = `${folder}/vitest.json`;
const bin = (name) => `node_modules/.bin/${name}`;

const CHECKS = [
  ['format and lint (biome)', bin('biome'), ['check', '.']],
  ['types (tsc)', bin('tsc'), ['--noEmit']],
  ['boundaries (dependency-cruiser)', process.execPath, ['test/boundaries.mjs']],
  ['unused code (knip)', bin('knip'), []],
];

const started = Date.now();
const seconds = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`;

function run(command, args, stdio) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on('data', (chunk) => {
        output += chunk;
      });
    }
    child.on('error', (error) => resolve({ code: 1, output: `${output}${error.message}\n` }));
    child.on('close', (code) => resolve({ code: code ?? 1, output }));
  });
}

/** One check after the other, so that they leave the second core to the tests. */
async function runChecks() {
  const results = [];
  for (const [name, command, args] of CHECKS) {
    const since = Date.now();
    const { code, output } = await run(command, args, ['ignore', 'pipe', 'pipe']);
    console.log(`${code === 0 ? 'pass' : 'FAIL'}  ${name}  ${seconds(since)}`);
    results.push({ name, passed: code === 0, output });
  }
  return results;
}

/** Counts of vitest's own report; a run that left none, or failed outside of any test, counts as one failure more. */
function readReport(code) {
  try {
    const { numPassedTests, numFailedTests, numPendingTests, testResults } = JSON.parse(
      readFileSync(report, 'utf8'),
    );
    // a file that fails outside of its tests (an import, a hook) has no failed test that would be counted
    const broken = testResults.filter(
      (file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'),
    );
    const failed = numFailedTests + broken.length;
    const unexplained = code !== 0 && failed === 0 ? 1 : 0;
    return { passed: numPassedTests, failed: failed + unexplained, skipped: numPendingTests };
  } catch (error) {
    console.log(`FAIL  vitest left no report: ${error.message}`);
    return { passed: 0, failed: 1, skipped: 0 };
  }
}

rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
const vitestArgs = [
  'run',
  '--reporter=default',
  '--reporter=json',
  `--outputFile.json=${report}`,
  ...process.argv.slice(2),
];
const [checks, vitest] = await Promise.all([runChecks(), run(bin('vitest'), vitestArgs, 'inherit')]);

const tests = readReport(vitest.code);
const failedChecks = checks.filter((check) => !check.passed);
for (const { name, output } of failedChecks) console.log(`\n── ${name}\n${output.trim()}`);
const passed = tests.passed + checks.length - failedChecks.length;
const failed = tests.failed + failedChecks.length;
console.log(
  `\n${tests.passed} of ${tests.passed + tests.failed} tests${tests.skipped ? ` (${tests.skipped} skipped)` : ''}, ` +
    `${checks.length - failedChecks.length} of ${checks.length} checks passed in ${seconds(started)}`,
);
const line = `${passed} passed, ${failed} failed`;
writeFileSync(`${folder}/summary`, `${line}\n`);
console.log(line);
process.exit(failed === 0 ? 0 : 1);
