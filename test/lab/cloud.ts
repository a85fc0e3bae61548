/**
 * The lab as a provider of machines: the other side of the controller's `lab` provider. A machine is a host with the
 * cables of an exit; what cloud-init would do on it is done here from the very document that it is told: the real agent
 * enrolls with the token in it and runs.
 */
import { writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { enrollmentOf, readCloudInit } from '@katafract/controller/fleet/machines/cloud-init';
import type { Exit } from './exit.ts';
import { waitFor } from './wait.ts';

interface Order {
  readonly node: string;
  readonly region: string;
  readonly userData: string;
}

/** What the lab does for it. */
export interface Site {
  /** A host of that name, plugged in and switched on. */
  add(name: string, region: string): Promise<Exit>;
  remove(exit: Exit): Promise<void>;
}

export class Cloud {
  readonly #server: Server;
  readonly #site: Site;
  readonly #exits = new Map<string, Promise<Exit>>();
  /** What went wrong on machines, for whoever waits for one in vain. */
  readonly faults: string[] = [];
  #closed = false;

  private constructor(server: Server, site: Site) {
    this.#server = server;
    this.#site = site;
    server.on('request', (request, response) => {
      this.#answer(request, response).catch((error: unknown) => {
        this.faults.push(String(error));
        response.writeHead(500).end();
      });
    });
  }

  static async open(site: Site): Promise<Cloud> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    server.unref();
    return new Cloud(server, site);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** What the controller must be told. No package is downloaded in the lab. */
  get env(): NodeJS.ProcessEnv {
    return {
      KATAFRACT_LAB_URL: `http://127.0.0.1:${this.port}`,
      KATAFRACT_AGENT_DEB_URL: 'https://packages.example/katafract-agent.deb',
      KATAFRACT_AGENT_DEB_SHA256: '0'.repeat(64),
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const machine = request.url?.split('/')[2] ?? '';
    if (request.method === 'GET') {
      const items = [...this.#exits].map(async ([id, exit]) => ({ machine: id, ...describe(await exit) }));
      return send(response, 200, { items: await Promise.all(items) });
    }
    if (request.method === 'DELETE') {
      const exit = this.#exits.get(machine);
      this.#exits.delete(machine);
      if (exit) await this.#site.remove(await exit);
      return send(response, 204);
    }
    const order = JSON.parse(Buffer.concat(chunks).toString()) as Order;
    const exit = this.#exits.get(machine) ?? this.#make(machine, order);
    send(response, 200, describe(await exit));
  }

  #make(machine: string, { node, region, userData }: Order): Promise<Exit> {
    const making = this.#site.add(node, region);
    this.#exits.set(machine, making);
    making
      .then((exit) => boot(exit, userData, () => this.#closed || !this.#exits.has(machine)))
      .catch((error: unknown) => this.faults.push(`${node}: ${error}: ${(error as Error).cause}`));
    return making;
  }
}

const describe = ({ name, publicAddress4 }: Exit) => ({ ref: name, address: publicAddress4 });

function send(response: ServerResponse, status: number, body?: object): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(body === undefined ? undefined : JSON.stringify(body));
}

/** As the set-up script does it: the token from a file, and again until it has worked. */
async function boot(exit: Exit, userData: string, gone: () => boolean): Promise<void> {
  const { joinToken, controllerUrl, endpointPort } = enrollmentOf(readCloudInit(userData));
  const file = join(exit.stateDir, 'join-token');
  writeFileSync(file, joinToken, { mode: 0o600 });
  const endpoint = `${exit.publicAddress4}:${endpointPort}`;
  const enrolled = async () => {
    if (gone()) return true;
    const place = ['enroll', '--state-dir', exit.stateDir, '--controller', controllerUrl];
    const how = ['--token-file', file, '--endpoint', endpoint];
    await exit.exec(process.execPath, [exit.agentBundle, ...place, ...how], { timeoutMs: 30_000 });
    return true;
  };
  await waitFor(`${exit.name} to enroll`, enrolled, { deadlineMs: 20_000 });
  if (!gone()) exit.startAgent();
}
