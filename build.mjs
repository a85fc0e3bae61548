/**
 * Bundles the two programs. The agent becomes one file with everything inside, since a node should need nothing but
 * Node, and one file starts faster and takes less memory than a tree of modules. The controller's own packages are
 * bundled, its npm packages stay in node_modules (some bring binaries of their own).
 */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = dirname(fileURLToPath(import.meta.url));

// CommonJS packages inside an ES module still call require() for Node's own modules.
const banner = {
  js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
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
  banner,
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

const programs = [
  { entry: 'agent/src/main.ts', outfile: 'agent/dist/main.mjs', minify: true },
  { entry: 'controller/src/main.ts', outfile: 'controller/dist/main.mjs', plugins: [externalPackages] },
];

for (const { entry, ...options } of programs) {
  if (existsSync(join(root, entry))) {
    await build({ ...common, ...options, entryPoints: [entry] });
    console.log(`built ${options.outfile}`);
  } else {
    console.log(`skipped ${entry}: not there`);
  }
}
