/**
 * Bundles the programs. Agent, its helper and wraith become one file each with everything inside, since a node or a
 * device should need nothing but Node, and one file starts faster and takes less memory than a tree of modules. The
 * controller's own packages are bundled, its npm packages stay in node_modules (some bring binaries of their own).
 *
 *   node build.mjs                            all of them
 *   node build.mjs agent <version> <outfile>  the agent alone, as another release of it
 *   node build.mjs deb [version]              the agent's Debian package, in dist
 */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { agentPackage } from './systemd/deb.mjs';

const root = dirname(fileURLToPath(import.meta.url));

/** CommonJS packages inside an ES module still call require() for Node's own modules. */
const whole = {
  minify: true,
  banner: {
    js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
  },
};

const common = {
  absWorkingDir: root,
  bundle: true,
  platform: 'node',
  format: 'esm',
  target: 'node20.19',
  sourcemap: false,
  legalComments: 'none',
  logLevel: 'warning',
};

/** Everything that is not ours stays outside. */
const externalPackages = {
  name: 'external-packages',
  setup(builder) {
    builder.onResolve({ filter: /^[^./]/ }, ({ path, kind }) =>
      kind === 'entry-point' || path.startsWith('@katafract/') ? undefined : { path, external: true },
    );
  },
};

/** The same sources under another version number: the release that a test rolls out. */
const asVersion = (version) => ({
  name: 'as-version',
  setup(builder) {
    builder.onLoad({ filter: /\/agent\/src\/version\.ts$/ }, () => ({
      contents: `export const VERSION = ${JSON.stringify(version)};`,
      loader: 'ts',
    }));
  },
});

const programs = [
  { entry: 'agent/src/main.ts', outfile: 'agent/dist/main.mjs', ...whole },
  { entry: 'agent/src/helper.ts', outfile: 'agent/dist/helper.mjs', ...whole },
  { entry: 'controller/client/src/wraith/main.ts', outfile: 'controller/client/dist/wraith.mjs', ...whole },
  { entry: 'controller/cli/src/main.ts', outfile: 'controller/cli/dist/katafract.mjs', ...whole },
  { entry: 'controller/src/main.ts', outfile: 'controller/dist/main.mjs', plugins: [externalPackages] },
];

async function buildAll(wanted) {
  for (const { entry, ...options } of wanted) {
    await build({ ...common, ...options, entryPoints: [entry] });
    console.log(`built ${options.outfile}`);
  }
}

async function buildPackage(version) {
  const bundle = (entry, outfile) => ({ entry, outfile, plugins: [asVersion(version)], ...whole });
  const [main, helper] = [join(root, 'dist/agent/main.mjs'), join(root, 'dist/agent/helper.mjs')];
  await buildAll([bundle('agent/src/main.ts', main), bundle('agent/src/helper.ts', helper)]);
  const { path, sha256 } = agentPackage({ main, helper, version, folder: join(root, 'dist') });
  console.log(`built ${path}\nSHA-256 ${sha256}`);
}

const [what, version, outfile] = process.argv.slice(2);
if (what === 'deb') {
  await buildPackage(version ?? JSON.parse(readFileSync(join(root, 'agent/package.json'), 'utf8')).version);
} else {
  const release = { entry: 'agent/src/main.ts', outfile, plugins: [asVersion(version)], ...whole };
  await buildAll(what === 'agent' ? [release] : programs);
}
