/** Links, addresses, routes and sysctls of the host. Reads /proc where it can: a process costs milliseconds. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import { parseRoutes4, parseRoutes6, type Route, uplinkOf } from '../observe/routes.ts';
import type { Link, NetworkPort, Uplinks } from '../ports.ts';
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
    link: (name) => link(exec, name),
    routes,
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

async function link(exec: Exec, name: string): Promise<Link | null> {
  let text: string;
  try {
    text = await exec.run('ip', ['-j', 'address', 'show', 'dev', name]);
  } catch (error) {
    const stderr = error instanceof KatafractError ? String(error.detail?.stderr) : '';
    if (/does not exist|Cannot find device/.test(stderr)) return null;
    throw error;
  }
  const found = IpAddress.parse(JSON.parse(text)).find((entry) => entry.ifname === name);
  if (!found) return null;
  const addresses = (found.addr_info ?? []).filter((address) => address.scope !== 'link');
  return {
    up: found.flags?.includes('UP') ?? false,
    mtu: found.mtu ?? 0,
    addresses: addresses.map(({ local, prefixlen }) => `${local}/${prefixlen}`),
  };
}

async function routes(tunnel: string, fixed: string | null): Promise<Uplinks & { routes: string[] }> {
  const [text4, text6] = await Promise.all([
    readFile('/proc/net/route', 'utf8'),
    readText('/proc/net/ipv6_route'),
  ]);
  const routes4 = parseRoutes4(text4);
  const routes6 = parseRoutes6(text6 ?? '');
  const here = (route: Route) => route.device === tunnel;
  return {
    uplink4: fixed ?? uplinkOf(routes4),
    uplink6: fixed ?? uplinkOf(routes6),
    routes: [...routes4, ...routes6].filter(here).map((route) => route.prefix),
  };
}
