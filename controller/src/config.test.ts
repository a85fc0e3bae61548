import { describe, expect, it } from 'vitest';
import { configTable, loadConfig } from './config.ts';

const errorsOf = (env: Record<string, string>): string[] => {
  try {
    loadConfig(env);
    return [];
  } catch (error) {
    return (error as { detail: { errors: string[] } }).detail.errors;
  }
};

describe('the configuration', () => {
  it('needs nothing', () => {
    const config = loadConfig({}, true);
    expect(config).toMatchObject({
      databaseUrl: null,
      dataDir: '/var/lib/katafract',
      apiListen: { host: '127.0.0.1', port: 8080 },
      publicUrl: 'http://127.0.0.1:8080',
      meshUrl: 'http://127.0.0.1:8080',
      mqtt: { external: null, publicUrl: 'mqtt://127.0.0.1:1883' },
      operatorToken: { path: '/var/lib/katafract/operator-token', create: true },
    });
    expect(loadConfig({}, false).dataDir).toMatch(/\.local\/share\/katafract$/);
  });

  it('names every variable that is wrong, at once, and repeats no value', () => {
    const errors = errorsOf({
      DATABASE_URL: 'postgres://user:hunter2@one,two/db',
      REDIS_URL: 'http://x',
      KATAFRACT_API_LISTEN: '8080',
      KATAFRACT_MESH_LISTEN: '[::1]:99999',
      KATAFRACT_MQTT_TLS_CERT_FILE: '/cert',
      KATAFRACT_MQTT_USERNAME: 'me',
      KATAFRACT_TUNNEL_IPV4: '10.64.0.1/10',
      KATAFRACT_ACK_TIMEOUT_MS: '-1',
      LOG_LEVEL: 'loud',
    });
    const named = errors.map((error) => error.split(':')[0]);
    expect(named).toEqual([
      'DATABASE_URL',
      'REDIS_URL',
      'KATAFRACT_API_LISTEN',
      'KATAFRACT_MESH_LISTEN',
      'KATAFRACT_ACK_TIMEOUT_MS',
      'LOG_LEVEL',
      'KATAFRACT_MQTT_TLS_CERT_FILE, KATAFRACT_MQTT_TLS_KEY_FILE',
      'KATAFRACT_MQTT_USERNAME',
      'KATAFRACT_MQTT_USERNAME, KATAFRACT_MQTT_PASSWORD_FILE',
      'KATAFRACT_TUNNEL_IPV4, KATAFRACT_TUNNEL_IPV6',
    ]);
    expect(errors.join()).not.toContain('hunter2');
  });

  it('takes an external broker and a mesh', () => {
    const config = loadConfig({
      KATAFRACT_MQTT_URL: 'mqtts://broker.mesh:8883',
      KATAFRACT_MESH_LISTEN: '[fd7a::1]:9000',
      KATAFRACT_PUBLIC_URL: 'https://api.example.org/',
    });
    expect(config).toMatchObject({
      publicUrl: 'https://api.example.org',
      meshListen: { host: 'fd7a::1', port: 9000 },
      meshUrl: 'http://[fd7a::1]:9000',
      mqtt: { external: { url: 'mqtts://broker.mesh:8883', admission: 'dynsec' } },
    });
  });

  it('is documented to the last variable', () => {
    for (const { name, meaning } of configTable()) {
      expect(name).toMatch(/^(?:KATAFRACT_[A-Z0-9_]+|DATABASE_URL|REDIS_URL|LOG_LEVEL)$/);
      expect(meaning.length).toBeGreaterThan(10);
    }
  });

  const stripe = {
    KATAFRACT_STRIPE_SECRET_KEY_FILE: '/key',
    KATAFRACT_STRIPE_WEBHOOK_SECRET_FILE: '/whsec',
    KATAFRACT_STRIPE_PRICES: 'price_1=plus, price_2=pro',
    KATAFRACT_STRIPE_SUCCESS_URL: 'https://app.example.org/thanks?of={CHECKOUT_SESSION_ID}',
    KATAFRACT_STRIPE_CANCEL_URL: 'https://app.example.org/',
  };

  it('has every store off, and one on with what it needs', () => {
    expect(loadConfig({}).stores).toEqual({ stripe: null, apple: null, google: null });
    expect(loadConfig(stripe).stores).toMatchObject({
      stripe: {
        apiBase: 'https://api.stripe.com',
        liveMode: true,
        prices: { price_1: 'plus', price_2: 'pro' },
        cancelUrl: 'https://app.example.org',
      },
      apple: null,
    });
  });

  it('names whatever a store lacks, or has without being on', () => {
    expect(
      errorsOf({
        ...stripe,
        KATAFRACT_STRIPE_PRICES: 'price_1=gold',
        KATAFRACT_STRIPE_CANCEL_URL: '',
        KATAFRACT_APPLE_KEY_FILE: '/key',
        KATAFRACT_APPLE_KEY_ID: 'id',
        KATAFRACT_APPLE_ISSUER_ID: 'issuer',
        KATAFRACT_GOOGLE_PACKAGE: 'org.example',
      }),
    ).toEqual([
      'KATAFRACT_STRIPE_PRICES: id=tier by comma, a tier being one of free, plus, pro, ops',
      'KATAFRACT_STRIPE_CANCEL_URL: required with KATAFRACT_STRIPE_SECRET_KEY_FILE',
      'KATAFRACT_APPLE_BUNDLE_ID: required with KATAFRACT_APPLE_KEY_FILE',
      'KATAFRACT_APPLE_ROOTS: required with KATAFRACT_APPLE_KEY_FILE',
      'KATAFRACT_APPLE_PRODUCTS: required with KATAFRACT_APPLE_KEY_FILE',
      'KATAFRACT_GOOGLE_PACKAGE: means nothing without KATAFRACT_GOOGLE_KEY_FILE',
      'KATAFRACT_APPLE_APP_ID: required in Production',
    ]);
  });
});
