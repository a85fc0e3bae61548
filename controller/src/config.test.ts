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
});
