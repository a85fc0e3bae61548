/**
 * A stand-in for a provider of machines, as far as the lab's protocol goes: it keeps machines by id, and can be told to
 * be slow, to fail half-way, to forget and to double. Its machines are fake exits that enroll with the token that they
 * were told.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Api } from './controller.ts';
import { FakeExit } from './fake-exit.ts';

export interface Made {
  readonly machine: string;
  readonly node: string;
  readonly ref: string;
  readonly address: string;
  readonly userData: string;
}

export type Fault =
  /** Answers with that status, and has done nothing. */
  | { readonly refuse: number }
  /** Has done it, and breaks the connection off. */
  | 'half'
  /** Does it and answers only when told. */
  | { readonly until: Promise<unknown> };

export class FakeCloud {
  readonly there = new Map<string, Made>();
  /** What each machine was told, each different text once. */
  readonly #told = new Map<string, Set<string>>();
  /** Every call, in order: `PUT <id>`. */
  readonly calls: string[] = [];
  /** Machines that were ever made; the same one twice only if it was made anew. */
  readonly made: string[] = [];
  readonly #server: Server;
  #fault: (call: string) => Fault | undefined = () => undefined;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async open(): Promise<FakeCloud> {
    const server = createServer();
    const cloud = new FakeCloud(server);
    server.on('request', (request, response) => void cloud.#answer(request, response));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return cloud;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** From now on each call is asked for its fault. */
  faults(fault: (call: string) => Fault | undefined): void {
    this.#fault = fault;
  }

  told(machine: string): string[] {
    return [...(this.#told.get(machine) ?? [])];
  }

  /** There is another machine like it, which nobody asked for. */
  double(machine: string, as: string): void {
    const made = this.there.get(machine);
    if (made) this.there.set(as, { ...made, machine: as, ref: `${made.ref}-again` });
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** The machine boots: an exit enrolls with what it was told, and connects. */
  async boot(api: Api, brokerUrl: string, machine: string): Promise<FakeExit> {
    const made = this.there.get(machine);
    if (!made) throw new Error(`no machine ${machine}`);
    const exit = await FakeExit.join(api, tokenOf(made.userData));
    await exit.connect(brokerUrl);
    return exit;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const id = request.url?.split('/')[2] ?? '';
    const call = `${request.method} ${id}`.trim();
    this.calls.push(call);
    const fault = this.#fault(call);
    if (typeof fault === 'object' && 'refuse' in fault) {
      response.writeHead(fault.refuse).end();
      return;
    }
    const [status, body] = this.#do(request.method ?? '', id, Buffer.concat(chunks).toString());
    if (typeof fault === 'object') await fault.until;
    if (fault === 'half') return void request.socket.destroy();
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(body === undefined ? undefined : JSON.stringify(body));
  }

  #do(method: string, id: string, body: string): [number, unknown?] {
    if (method === 'GET')
      return [200, { items: [...this.there.values()].map(({ userData: _, ...one }) => one) }];
    if (method === 'DELETE') return this.there.delete(id) ? [204] : [404];
    const found = this.there.get(id);
    const { userData } = JSON.parse(body) as { userData: string };
    this.#told.set(id, (this.#told.get(id) ?? new Set()).add(userData));
    const machine = found ?? this.#make(id, JSON.parse(body) as { node: string; userData: string });
    return [200, { ref: machine.ref, address: machine.address }];
  }

  #make(machine: string, { node, userData }: { node: string; userData: string }): Made {
    this.made.push(machine);
    const made = {
      machine,
      node,
      userData,
      ref: `ref-${this.made.length}`,
      address: `192.0.2.${100 + this.made.length}`,
    };
    this.there.set(machine, made);
    return made;
  }
}

/** The join token in a cloud-config document. */
export function tokenOf(userData: string): string {
  const found = /kfj1_[A-Za-z0-9_-]{43}_[A-Za-z0-9_-]{43}/.exec(userData)?.[0];
  if (!found) throw new Error('no join token was told');
  return found;
}
