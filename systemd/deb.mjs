/**
 * Packs a Debian package. The same inputs give the same bytes: times come from SOURCE_DATE_EPOCH
 * (reproducible-builds.org), owners are root, modes are given, the order of files is dpkg-deb's own.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const here = dirname(fileURLToPath(import.meta.url));

/** Seconds since the epoch. */
function sourceDate() {
  if (process.env.SOURCE_DATE_EPOCH) return process.env.SOURCE_DATE_EPOCH;
  try {
    return execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: here, encoding: 'utf8' }).trim();
  } catch {
    // an unpacked archive knows no commit: any time will do, as long as it is always the same
    return String(Date.UTC(2026, 0, 1) / 1000);
  }
}

/** Puts a file, a text, or a folder with all that is in it, into the tree. @returns how many bytes it takes */
function put(tree, { path, mode, file, text, folder, but = [] }) {
  const target = join(tree, path);
  if (folder !== undefined) {
    return readdirSync(folder)
      .filter((name) => !but.includes(name))
      .map((name) => putEntry(tree, join(path, name), join(folder, name), but))
      .reduce((sum, bytes) => sum + bytes, 0);
  }
  mkdirSync(dirname(target), { recursive: true });
  if (text === undefined) copyFileSync(file, target);
  else writeFileSync(target, text);
  chmodSync(target, mode);
  return lstatSync(target).size;
}

function putEntry(tree, path, source, but) {
  const stat = lstatSync(source);
  if (stat.isDirectory()) return put(tree, { path, folder: source, but });
  if (stat.isSymbolicLink()) {
    mkdirSync(dirname(join(tree, path)), { recursive: true });
    symlinkSync(readlinkSync(source), join(tree, path));
    return 0;
  }
  return put(tree, { path, file: source, mode: stat.mode & 0o111 ? 0o755 : 0o644 });
}

/** Debian wants compressed manuals and changelogs; without the time of today in their heads. */
export const compressed = (text) => gzipSync(text, { level: 9 });

/**
 * @param options.fields of the control file, besides Installed-Size
 * @param options.contents `{path, mode, file | text}` or `{path, folder, but}`, below the root of the system; `but`: names that
 * are left out wherever they stand
 * @param options.scripts maintainer scripts: name to file
 * @param options.conffiles paths from the root that an upgrade leaves as the operator made them
 * @param options.output folder that the package goes to
 * @returns the path of the package, and its SHA-256
 */
export function pack({ fields, contents, scripts, conffiles = [], output }) {
  const tree = mkdtempSync(join(tmpdir(), 'katafract-deb-'));
  try {
    const bytes = contents.reduce((sum, content) => sum + put(tree, content), 0);
    const control = Object.entries({ ...fields, 'Installed-Size': Math.ceil(bytes / 1024) });
    const texts = { control: control.map(([name, value]) => `${name}: ${value}\n`).join('') };
    if (conffiles.length > 0) texts.conffiles = conffiles.map((path) => `/${path}\n`).join('');
    for (const [name, text] of Object.entries(texts))
      put(tree, { path: `DEBIAN/${name}`, mode: 0o644, text });
    for (const [name, file] of Object.entries(scripts))
      put(tree, { path: `DEBIAN/${name}`, mode: 0o755, file });
    sums(tree);
    const name = `${fields.Package}_${fields.Version}_${fields.Architecture}.deb`;
    return build(tree, join(output, name));
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

/** dpkg --verify holds an installed system against these. */
function sums(tree) {
  const lines = [];
  const walk = (folder) => {
    for (const name of readdirSync(join(tree, folder)).sort()) {
      const path = join(folder, name);
      const stat = lstatSync(join(tree, path));
      if (stat.isDirectory()) {
        if (path !== 'DEBIAN') walk(path);
      } else if (stat.isFile()) {
        const sum = createHash('md5')
          .update(readFileSync(join(tree, path)))
          .digest('hex');
        lines.push(`${sum}  ${path}\n`);
      }
    }
  };
  walk('');
  put(tree, { path: 'DEBIAN/md5sums', mode: 0o644, text: lines.join('') });
}

function build(tree, path) {
  mkdirSync(dirname(path), { recursive: true });
  const env = { ...process.env, SOURCE_DATE_EPOCH: sourceDate() };
  // folders take the mode of whoever builds, and times of today would differ each time
  execFileSync('find', [tree, '-type', 'd', '-exec', 'chmod', '0755', '{}', '+']);
  const at = `@${env.SOURCE_DATE_EPOCH}`;
  execFileSync('find', [tree, '-exec', 'touch', '--no-dereference', '-d', at, '{}', '+']);
  const how = [
    '--root-owner-group',
    `-Z${process.env.KATAFRACT_DEB_COMPRESSION ?? 'xz'}`,
    '-z1',
    '--threads-max=2',
  ];
  execFileSync('dpkg-deb', [...how, '--build', tree, path], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  return { path, sha256: createHash('sha256').update(readFileSync(path)).digest('hex') };
}
