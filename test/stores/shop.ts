/** A stand-in of Stripe beside the lab, and a customer of it: who pays, claims, connects, and stops paying. */
import assert from 'node:assert/strict';
import {
  type ClaimSecret,
  type Client,
  createClient,
  generateDeviceKey,
  makeClaimSecret,
} from '@katafract/client/sdk';
import type { Peer } from '@katafract/shared/api';
import { PAYER, type Stores, startStores } from '../http/stores.ts';
import { type Device, makeKeys } from '../lab/device.ts';
import type { Lab } from '../lab/lab.ts';
import type { Action, Step } from './stand-in.ts';

export class Shop {
  /** What makes a controller use it. */
  readonly env: Readonly<Record<string, string>>;
  readonly #stores: Stores;
  #lab: Lab | undefined;

  private constructor(stores: Stores) {
    this.#stores = stores;
    this.env = stores.env;
  }

  static async open(): Promise<Shop> {
    return new Shop(await startStores());
  }

  /** Lets the controller of the lab reach it. */
  async join(lab: Lab): Promise<void> {
    this.#lab = lab;
    for (const store of this.#stores.all) await lab.artemis.expose(Number(new URL(store.url).port));
  }

  close(): Promise<void> {
    return this.#stores.close();
  }

  get #api() {
    if (!this.#lab) throw new Error('the shop has not joined a lab');
    return this.#lab.controller;
  }

  /** Somebody who goes to pay for `plus`, and has paid; nobody has told the controller yet. */
  async pay(): Promise<Payment> {
    const { publicApi: baseUrl, publicUrl } = this.#api;
    const client = createClient({ baseUrl, publicUrl, deviceKey: await generateDeviceKey() });
    const secret = makeClaimSecret();
    const page = await client.checkout({ tier: 'plus', secret });
    return { client, secret, paid: await this.#stores.stripe.pay(page, PAYER) };
  }

  /** Pays, claims the Sigil on one device, and connects it. */
  async buy(device: Device, region: string): Promise<Customer> {
    const { client, secret, paid } = await this.pay();
    await assert.rejects(client.claim({ secret, waitMs: 0 }), { code: 'claim_pending' });
    await this.deliver(paid);
    const { sigil } = await client.claim({ secret });
    const keys = makeKeys();
    const peer = await client.provision({ publicKey: keys.publicKey, region });
    await device.up(peer.config, keys.privateKey);
    await device.handshake();
    return { device, peer, sigil, purchase: paid.reference };
  }

  /** Something happens to what was bought, and Stripe says so. */
  async happens(purchase: string, action: Action): Promise<void> {
    await this.deliver(await this.#stores.stripe.act(purchase, action));
  }

  /** Posts what Stripe has to say; resolves when all of it is taken. */
  async deliver({ webhooks }: Step): Promise<void> {
    for (const { body, headers } of webhooks) {
      const url = `${this.#api.publicApi}/v1/webhooks/stripe`;
      const answer = await fetch(url, { method: 'POST', body, headers: { ...headers } });
      assert.equal(answer.status, 200, `the webhook was answered ${answer.status}: ${await answer.text()}`);
    }
  }
}

export interface Payment {
  readonly client: Client;
  readonly secret: ClaimSecret;
  readonly paid: Step;
}

export interface Customer {
  readonly device: Device;
  readonly peer: Peer;
  readonly sigil: string;
  /** Stripe's id of the subscription. */
  readonly purchase: string;
}
