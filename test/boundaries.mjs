/**
 * Holds the tree against the boundaries in .dependency-cruiser.mjs. A cruise that reads nothing finds nothing wrong,
 * so every source file must turn up among the modules that were read, with the imports its text has.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cruise } from 'dependency-cruiser';
import extractTSConfig from 'dependency-cruiser/config-utl/extract-ts-config';
import config from '../.dependency-cruiser.mjs';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
const roots = [
  'shared/src',
  'agent/src',
  'controller/src',
  'controller/client/src',
  'controller/cli/src',
  'test',
];

function sourceFiles(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory())
      return entry.name === 'node_modules' || entry.name === 'dist' ? [] : sourceFiles(path);
    return /\.(?:tsx?|mjs)$/.test(entry.name) ? [path] : [];
  });
}

const files = roots.flatMap(sourceFiles);
const { enhancedResolveOptions, tsConfig, ...options } = config.options;
const { output } = await cruise(
  files,
  { ...options, tsConfig, ruleSet: { forbidden: config.forbidden }, validate: true },
  enhancedResolveOptions,
  { tsConfig: extractTSConfig(tsConfig.fileName) },
);

const modules = new Map(output.modules.map((module) => [module.source, module]));
const unread = files.filter((file) => !modules.has(file));
// a file with import statements in which no import was seen was not really parsed
const blind = files.filter(
  (file) =>
    modules.get(file)?.dependencies.length === 0 &&
    /^(?:import|export) [^'"]*from ['"]/m.test(readFileSync(file, 'utf8')),
);
for (const file of [...unread, ...blind]) console.error(`boundaries: ${file} was not read`);

const reasons = new Map(config.forbidden.map((rule) => [rule.name, rule.comment]));
for (const { rule, from, to, cycle } of output.summary.violations) {
  const path = cycle ? cycle.map((step) => step.name ?? step).join(' → ') : to;
  console.error(`boundaries: ${rule.name}: ${from} → ${path}\n    ${reasons.get(rule.name)}`);
}
const wrong = unread.length + blind.length + output.summary.violations.length;
console.log(
  `boundaries: ${files.length} files read, ${output.summary.totalDependenciesCruised} imports, ${wrong} wrong`,
);
process.exit(wrong === 0 && files.length > 0 ? 0 : 1);
