/** Links, addresses, routes and sysctls of the host. Reads /proc where it can: a process costs milliseconds. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { parseRoutes4, parseRoutes6 } from '../observe/routes.ts';
import type { Link, NetworkPort } from '../ports.ts';
import type { Exec } from './exec.ts';
import { readText } from './files.ts';

const SYSCTLS = '/proc/sys';

const IpAddress = z.array(
  z.object({
    ifname: z.string().optional(),
    flags: z.array(z.string()).optional(),
    mtu: z.number().optional(),
    addr_info: z
      .array(z.object({ local: z.string(), prefixlen: z.number(), scope: z.string().optional() }))
      .optional(),
  }),
);

export function network(exec: Exec): NetworkPort {
  return {
    links: () => links(exec),
    async routes() {
      const [text4, text6] = await Promise.all([
        readFile('/proc/net/route', 'utf8'),
        readText('/proc/net/ipv6_route'),
      ]);
      return { 4: parseRoutes4(text4), 6: parseRoutes6(text6 ?? '') };
    },
    async sysctls(paths) {
      const values = await Promise.all(paths.map((path) => readText(join(SYSCTLS, path))));
      return new Map(paths.map((path, index) => [path, values[index]?.trim() ?? null]));
    },
    setSysctl: (path, value) => writeFile(join(SYSCTLS, path), value),
    async ip(args) {
      await exec.run('ip', args);
    },
  };
}

async function links(exec: Exec): Promise<ReadonlyMap<string, Link>> {
  const text = await exec.run('ip', ['-j', 'address', 'show']);
  const found = IpAddress.parse(JSON.parse(text)).filter((entry) => entry.ifname !== undefined);
  return new Map(
    found.map(({ ifname = '', flags, mtu, addr_info: addresses }) => [
      ifname,
      {
        up: flags?.includes('UP') ?? false,
        mtu: mtu ?? 0,
        addresses: (addresses ?? [])
          .filter((address) => address.scope !== 'link')
          .map(({ local, prefixlen }) => `${local}/${prefixlen}`),
      },
    ]),
  );
}
