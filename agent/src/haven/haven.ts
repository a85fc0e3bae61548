/**
 * The DNS filter of the exit, in the agent's own way: looks at everything AdGuard Home says and at what the kernel shows
 * of it, asks a real question through the tunnel's own address, and puts right what its API can put right.
 *
 * A filter that keeps or tells anything of a client is closed to clients until it does not: their queries go nowhere then,
 * rather than into somebody's log.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import { KatafractError } from '@katafract/shared/errors';
import type { Ipv4, Ipv6 } from '@katafract/shared/units';
import { z } from 'zod';
import { type HavenRequest, isPrivate4, isPrivate6 } from '../helper/requests.ts';
import { subnet4, subnet6 } from '../plan/subnets.ts';
import type { HavenCounts, HavenFinding, HavenPort, HavenView, Log, SteadyClock } from '../ports.ts';
import { type Call, type Check, checksOf } from './checks.ts';

/** AdGuard Home's API. */
export interface AdguardPort {
  /** @throws KatafractError `adguard_away`, `adguard_login` (401: not to be tried often), `adguard_refused` */
  read(path: string): Promise<unknown>;
  call(call: Call): Promise<void>;
}

export interface ResolverPort {
  /** Asks `server` for the IPv4 addresses of a name; null where there is no answer, or one that says it failed. */
  ask(server: string, name: string): Promise<readonly string[] | null>;
}

export interface SocketsPort {
  /** Addresses of this machine on which anything is bound to a port, by UDP or listening by TCP. */
  boundTo(port: number): Promise<readonly string[]>;
}

export interface HavenPorts {
  readonly adguard: AdguardPort;
  readonly resolver: ResolverPort;
  readonly sockets: SocketsPort;
  readonly clock: SteadyClock;
  readonly log: Log;
}

/** AdGuard answers this one itself, with nothing and without an error. */
const HEALTH_NAME = 'healthcheck.adguardhome.test';
/**
 * After a refused login, in ms: five within a minute would lock us out for a quarter of an hour. A new start of AdGuard,
 * which is what puts the password right, ends that as well, so it need not be waited for longer.
 */
const LOGIN_PAUSE_MS = 20_000;

/** Of its answer nothing else is looked at: the rest names what was asked for. */
const Stats = z.object({ num_dns_queries: z.number(), num_blocked_filtering: z.number() });

/** What is asked of the helper for a node's config; null where it wants no filter. @param password its bcrypt hash */
export function havenRequest(config: NodeConfig, password: string): HavenRequest | null {
  if (!config.haven) return null;
  const [four, six] = [subnet4(config), subnet6(config)];
  return {
    settings: config.haven,
    gateway4: four.address as Ipv4,
    gateway6: six.address as Ipv6,
    pool4: four.pool as HavenRequest['pool4'],
    pool6: six.pool as HavenRequest['pool6'],
    password,
  };
}

interface Reading {
  readonly check: Check;
  readonly answer: unknown;
}

interface Asked {
  readonly readings: readonly Reading[];
  readonly counts: HavenCounts | null;
}

export function haven(ports: HavenPorts, password: string): HavenPort {
  /** No login before this, by `elapsed`. */
  let loginAfter = 0;

  /** null where it could not be asked. */
  async function read(wish: HavenRequest): Promise<Asked | null> {
    if (ports.clock.elapsed() < loginAfter) return null;
    try {
      const [first, ...others] = checksOf(wish);
      if (!first) throw new Error('there is nothing to ask');
      // one alone first: a password that is wrong must not be tried nine times
      const begun = { check: first, answer: await ports.adguard.read(first.path) };
      const rest = await Promise.all(
        others.map(async (check) => ({ check, answer: await ports.adguard.read(check.path) })),
      );
      const counts = wish.settings.statistics ? countsOf(await ports.adguard.read('/stats')) : null;
      return { readings: [begun, ...rest], counts };
    } catch (error) {
      const code = error instanceof KatafractError ? error.code : 'failed';
      if (code === 'adguard_login') loginAfter = ports.clock.elapsed() + LOGIN_PAUSE_MS;
      ports.log.warn({ code }, 'the DNS filter could not be asked how it is');
      return null;
    }
  }

  async function answers({ gateway4, gateway6, settings }: HavenRequest): Promise<boolean> {
    const all = await Promise.all([
      ports.resolver.ask(gateway4, HEALTH_NAME),
      ports.resolver.ask(gateway6, HEALTH_NAME),
      ports.resolver.ask(gateway4, settings.probe),
    ]);
    const [four, six, real] = all;
    return four !== null && six !== null && real !== null && real !== undefined && real.length > 0;
  }

  async function look(wish: HavenRequest): Promise<HavenView> {
    const [asked, answering, bound] = await Promise.all([
      read(wish),
      answers(wish),
      ports.sockets.boundTo(53),
    ]);
    const exposed = bound.some(isOpen);
    const readings = asked?.readings ?? [];
    const wrong = readings.filter(({ check, answer }) => !check.right(answer));
    const leaks = exposed || wrong.some(({ check, answer }) => check.unsafe(answer));
    const findings: HavenFinding[] = [
      {
        id: 'asked',
        holds: asked !== null,
        attack: 'nobody knows what it does: whatever it did last, it may do',
      },
      ...readings.map(({ check, answer }) => ({
        id: check.id,
        holds: check.right(answer),
        attack: check.attack,
      })),
      {
        id: 'exposed',
        holds: !exposed,
        attack: 'anybody on the internet asks this resolver, and has others flooded by it',
      },
      { id: 'answers', holds: answering, attack: 'none: clients get no names' },
    ];
    const well = findings.every(({ holds }) => holds);
    return {
      state: leaks ? 'unsafe' : well ? 'ok' : 'failed',
      known: asked !== null || exposed,
      findings,
      counts: asked?.counts ?? null,
      settle: () => repair(wrong),
    };
  }

  async function repair(wrong: readonly Reading[]): Promise<number> {
    let repaired = 0;
    for (const { check, answer } of wrong) {
      const calls = check.repair(answer);
      try {
        for (const call of calls) await ports.adguard.call(call);
        if (calls.length > 0) repaired++;
      } catch (error) {
        ports.log.error({ err: error, check: check.id }, 'the DNS filter could not be put right');
      }
    }
    return repaired;
  }

  return {
    request: (config) => havenRequest(config, password),
    async look(config) {
      const wish = havenRequest(config, password);
      return wish ? look(wish) : null;
    },
  };
}

function countsOf(answer: unknown): HavenCounts | null {
  const { data } = Stats.safeParse(answer);
  return data ? { queries: data.num_dns_queries, blocked: data.num_blocked_filtering } : null;
}

/** Loopback and link-local addresses (RFC 1122, 3927, 4291). */
const OF_THIS_LINK = /^(?:127\.|169\.254\.|::1$|fe[89ab])/;

/** Whether an address is one that others than this machine and its tunnels can ask. */
function isOpen(address: string): boolean {
  if (address === '0.0.0.0' || address === '::') return true;
  return !isPrivate4(address) && !isPrivate6(address) && !OF_THIS_LINK.test(address);
}
