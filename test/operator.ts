/** A stand-in for an operator at the broker, free to misbehave: a key, tokens and commands of it, and a connection. */
import { randomUUID } from 'node:crypto';
import { type NodePublicJwk, publicJwk } from '@katafract/shared/node-token';
import {
  mintOperatorToken,
  OperatorCommand,
  OperatorName,
  operatorClientId,
  operatorUsername,
  signCommand,
} from '@katafract/shared/operator-command';
import { type CryptoKey, calculateJwkThumbprint, exportJWK, generateKeyPair } from 'jose';
import { connectAsync, type IClientOptions, type MqttClient } from 'mqtt';

/** What a command may differ in from an ordinary one. */
export type Wish = Partial<Record<keyof OperatorCommand, unknown>> &
  Pick<OperatorCommand, 'node' | 'command'>;

export class TestOperator {
  readonly name: OperatorName;
  readonly key: CryptoKey;
  readonly jwk: NodePublicJwk;
  readonly thumbprint: string;
  readonly audience: string;

  constructor(at: Pick<TestOperator, 'name' | 'key' | 'jwk' | 'thumbprint' | 'audience'>) {
    this.name = at.name;
    this.key = at.key;
    this.jwk = at.jwk;
    this.thumbprint = at.thumbprint;
    this.audience = at.audience;
  }

  static async make(name: string, audience: string): Promise<TestOperator> {
    const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    const jwk = publicJwk(await exportJWK(pair.publicKey));
    const thumbprint = await calculateJwkThumbprint(jwk);
    return new TestOperator({
      name: OperatorName.parse(name),
      key: pair.privateKey,
      jwk,
      thumbprint,
      audience,
    });
  }

  token(): Promise<string> {
    return mintOperatorToken(this.key, this.name, Date.now());
  }

  command(wish: Wish): OperatorCommand {
    const { at = Date.now(), audience } = { ...this, ...wish };
    const expiresAt = Number(at) + 60_000;
    return OperatorCommand.parse({ v: 1, id: randomUUID(), at, expiresAt, audience, ...wish });
  }

  sign(wish: Wish, by: CryptoKey = this.key, thumbprint = this.thumbprint): Promise<string> {
    return signCommand(this.command(wish), by, thumbprint);
  }

  /** One connection; it does not come back by itself unless asked. */
  async connect(url: string, options: IClientOptions = {}): Promise<MqttClient> {
    const client = await connectAsync(url, {
      clientId: operatorClientId(this.name),
      username: operatorUsername(this.name),
      password: await this.token(),
      reconnectPeriod: 0,
      connectTimeout: 3000,
      ...options,
    });
    client.on('error', () => undefined); // to be thrown off is what several tests are about
    return client;
  }
}
