/**
 * Requests made from an OpenAPI document: valid ones with values that exist in the world under test, and the same
 * spoilt in one of many ways. Which way is part of the request, so that a failure names it.
 */
import fc, { type Arbitrary } from 'fast-check';
import { type Resolve, type Schema, valid } from './json-schema.ts';
import type { RawRequest } from './raw-http.ts';

interface Parameter {
  readonly in: 'path' | 'query' | 'header';
  readonly name: string;
  readonly schema: Schema;
  readonly required?: boolean;
}

export interface Operation {
  readonly method: string;
  readonly path: string;
  readonly scheme: string | null;
  readonly parameters: readonly Parameter[];
  readonly body: Schema | null;
  /** By status, then by content type; null where there is no body. */
  readonly responses: ReadonlyMap<number, Readonly<Record<string, Schema>> | null>;
}

interface Content {
  readonly content?: Readonly<Record<string, { schema: Schema }>>;
}
interface Described {
  readonly parameters?: readonly Parameter[];
  readonly security?: readonly Record<string, unknown>[];
  readonly requestBody?: Content;
  readonly responses: Readonly<Record<string, Content>>;
}
export interface Document {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Described>>>>;
  readonly components?: { readonly schemas?: Record<string, Schema> };
}

export function operationsOf(document: Document): Operation[] {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, at]) => ({
      method: method.toUpperCase(),
      path,
      scheme: Object.keys(at.security?.[0] ?? {})[0] ?? null,
      parameters: at.parameters ?? [],
      body: at.requestBody?.content?.['application/json']?.schema ?? null,
      responses: new Map(
        Object.entries(at.responses).map(([status, { content }]) => [
          Number(status),
          content
            ? Object.fromEntries(Object.entries(content).map(([type, { schema }]) => [type, schema]))
            : null,
        ]),
      ),
    })),
  );
}

/** What the requests may refer to. Read anew for each request. */
export interface World {
  /** A value that exists, for a parameter or a property of this name; undefined to make one up. */
  known(operation: Operation, name: string): Arbitrary<unknown> | undefined;
  /** A whole body that cannot be made up from its schema. */
  body(operation: Operation): Arbitrary<unknown> | undefined;
  /** A good token for a security scheme. */
  token(scheme: string): string;
  /** A whole Authorization header, where the operation takes another than a bearer. */
  authorization(operation: Operation): string | undefined;
}

export interface Fuzzed {
  readonly operation: Operation;
  /** How it was spoilt. */
  readonly way: string;
  readonly request: RawRequest;
}

/** A request whose parts can still be exchanged. */
interface Draft {
  readonly operation: Operation;
  readonly method: string;
  readonly path: Readonly<Record<string, unknown>>;
  readonly query: Readonly<Record<string, unknown>>;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly body: unknown;
  readonly authorization: string | null;
}

export function requests(
  operations: readonly Operation[],
  resolve: Resolve,
  world: World,
): Arbitrary<Fuzzed> {
  const drafts = operations.map((operation) => draftOf(operation, resolve, world));
  const ways = fc.oneof(...WAYS.map(({ weight, spoil }) => ({ weight, arbitrary: fc.constant(spoil) })));
  return fc.oneof(...drafts).chain((draft) => ways.chain((spoil) => spoil(draft, world)));
}

function draftOf(operation: Operation, resolve: Resolve, world: World): Arbitrary<Draft> {
  const known = (name: string) => world.known(operation, name);
  const part = (where: Parameter['in']) => {
    const fields = operation.parameters.filter((parameter) => parameter.in === where);
    return fc.record(
      Object.fromEntries(fields.map(({ name, schema }) => [name, valid(schema, resolve, known, name)])),
      { requiredKeys: fields.filter(({ required }) => required).map(({ name }) => name) },
    );
  };
  const body = operation.body === null ? fc.constant(undefined) : valid(operation.body, resolve, known);
  const { method, scheme } = operation;
  return fc
    .record({
      path: part('path'),
      query: part('query'),
      headers: part('header'),
      body: world.body(operation) ?? body,
    })
    .map((draft) => ({
      ...draft,
      operation,
      method,
      authorization:
        scheme === null ? null : (world.authorization(operation) ?? `Bearer ${world.token(scheme)}`),
    }));
}

function targetOf({ operation, path, query }: Draft): string {
  const inUrl = (value: unknown) => encodeURIComponent(textOf(value));
  const filled = operation.path.replace(/\{(\w+)\}/g, (_, name: string) => inUrl(path[name]));
  const pairs = Object.entries(query).map(([name, value]) => `${name}=${inUrl(value)}`);
  return pairs.length === 0 ? filled : `${filled}?${pairs.join('&')}`;
}

/** As a part of a URL or a header; a lone surrogate has no form there. */
const textOf = (value: unknown) =>
  Buffer.from(typeof value === 'string' ? value : (JSON.stringify(value) ?? '')).toString('utf8');

function finish(
  draft: Draft,
  way: string,
  change: Partial<RawRequest> & { type?: string | null } = {},
): Fuzzed {
  const { operation, method, headers, body, authorization } = draft;
  const { type = 'application/json', ...rest } = change;
  const payload = body === undefined ? null : Buffer.from(JSON.stringify(body));
  const own = Object.entries(headers).map(([name, value]) => [name, String(value)] as const);
  const request: RawRequest = {
    method,
    target: targetOf(draft),
    body: payload,
    ...rest,
    headers: [
      ...(authorization === null ? [] : [['Authorization', authorization] as const]),
      ...((rest.body ?? payload) === null || type === null ? [] : [['Content-Type', type] as const]),
      ...own,
      ...(rest.headers ?? []),
    ],
  };
  return { operation, way, request };
}

const LONG = 'x'.repeat(5000);
/** What does not belong where it is put: other types, and text that some layer below may stumble over. */
const odd: Arbitrary<unknown> = fc.oneof(
  // what a text may be in JSON, and in no Postgres column
  { weight: 3, arbitrary: fc.constantFrom('\0', 'a\0b', '\ud800', 'x\udfff') },
  { weight: 2, arbitrary: fc.constantFrom(null, true, 0, -1, 1.5, 1e308, 2 ** 53, -(2 ** 63), [], {}, [[]]) },
  {
    weight: 1,
    arbitrary: fc.constantFrom('', ' ', LONG, 'NaN', '0x10', '1e3', '../..', '%00', '{}', '-0', 'null'),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom("' or 1=1 --", '$1', '\u202e\u2066', 'e\u0301', '🦊', '\n\r\t', '__proto__'),
  },
  { weight: 1, arbitrary: fc.string({ unit: 'binary' }) },
  { weight: 1, arbitrary: fc.double() },
);
const name = fc.constantFrom('x', '__proto__', 'constructor', 'hasOwnProperty', 'privateKey', '\0', '', LONG);

const pick = <T>(values: readonly T[]) => fc.constantFrom(...values);
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

interface Way {
  readonly weight: number;
  readonly spoil: (draft: Draft, world: World) => Arbitrary<Fuzzed>;
}

const WAYS: readonly Way[] = [
  { weight: 7, spoil: (draft) => fc.constant(finish(draft, 'not at all')) },
  { weight: 6, spoil: oddField },
  { weight: 2, spoil: otherFields },
  { weight: 3, spoil: oddParameter },
  { weight: 2, spoil: oddText },
  { weight: 1, spoil: oddType },
  { weight: 1, spoil: oversize },
  { weight: 2, spoil: otherMethod },
  { weight: 3, spoil: oddAuthorization },
  { weight: 2, spoil: oddHeader },
  { weight: 2, spoil: oddTarget },
];

/** A property of the body, or one inside of it, is something else. */
function oddField(draft: Draft): Arbitrary<Fuzzed> {
  const { body } = draft;
  if (!isObject(body))
    return odd.map((value) => finish({ ...draft, body: value }, 'body where there is none'));
  return fc.tuple(pick([...Object.keys(body), 'x']), odd, fc.boolean()).map(([field, value, deep]) => {
    const inner = body[field];
    const spoilt = deep && isObject(inner) ? { ...inner, [Object.keys(inner).at(-1) ?? 'x']: value } : value;
    return finish({ ...draft, body: { ...body, [field]: spoilt } }, `odd ${field}`);
  });
}

/** A property is missing, or one too many. */
function otherFields(draft: Draft): Arbitrary<Fuzzed> {
  const { body } = draft;
  if (!isObject(body)) return fc.constant(finish(draft, 'not at all'));
  const without = pick(Object.keys(body).length > 0 ? Object.keys(body) : ['x']).map((field) => {
    const { [field]: _, ...rest } = body;
    return finish({ ...draft, body: rest }, `no ${field}`);
  });
  // as text: `{...body, __proto__: 1}` would set the prototype instead
  const more = fc.tuple(name, odd).map(([field, value]) => {
    const text = JSON.stringify(body).slice(0, -1);
    const comma = text === '{' ? '' : ',';
    return finish(draft, 'one more field', {
      body: Buffer.from(`${text}${comma}${JSON.stringify(field)}:${JSON.stringify(value)}}`),
    });
  });
  return fc.oneof(without, more);
}

function oddParameter(draft: Draft): Arbitrary<Fuzzed> {
  const names = draft.operation.parameters;
  if (names.length === 0) return odd.map((value) => finish({ ...draft, query: { x: value } }, 'odd query'));
  return fc.tuple(pick(names), odd).map(([parameter, value]) => {
    if (parameter.in === 'header') {
      const text = textOf(value).replace(/[^\x20-\xff]/g, '?');
      return finish(
        { ...draft, headers: { ...draft.headers, [parameter.name]: text } },
        `odd ${parameter.name}`,
      );
    }
    const { in: where, name: field } = parameter;
    return finish({ ...draft, [where]: { ...draft[where], [field]: value } }, `odd ${field}`);
  });
}

/** Bytes that are no JSON, or strange JSON. */
function oddText(draft: Draft): Arbitrary<Fuzzed> {
  const good = Buffer.from(JSON.stringify(draft.body ?? {}));
  const doubled = `${good.toString().slice(0, -1)},"tier":"free","publicKey":"x","region":"xx"}`;
  const deep = (open: string, close: string, depth: number) => `${open.repeat(depth)}1${close.repeat(depth)}`;
  const texts: Readonly<Record<string, Buffer>> = {
    'cut off': good.subarray(0, -1),
    'doubled keys': Buffer.from(doubled.replace('{,', '{')),
    'deep array': Buffer.from(deep('[', ']', 20_000)),
    'deep object': Buffer.from(deep('{"a":', '}', 9_000)),
    'invalid UTF-8': Buffer.concat([
      good.subarray(0, -2),
      Buffer.from([0xff, 0xc0, 0xaf]),
      good.subarray(-2),
    ]),
    'NUL bytes': Buffer.concat([good, Buffer.alloc(3)]),
    'byte order mark': Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), good]),
    'UTF-16': Buffer.from(good.toString(), 'utf16le'),
    'huge number': Buffer.from(`{"capacity":1e999,"latitude":-1e999,"id":${'9'.repeat(400)}}`),
    nothing: Buffer.alloc(0),
    scalar: Buffer.from('42'),
    array: Buffer.from(`[${good}]`),
    null: Buffer.from('null'),
    two: Buffer.concat([good, good]),
  };
  return fc.oneof(
    pick(Object.entries(texts)).map(([what, body]) => finish(draft, `text: ${what}`, { body })),
    fc
      .uint8Array({ maxLength: 300 })
      .map((body) => finish(draft, 'text: noise', { body: Buffer.from(body) })),
  );
}

function oddType(draft: Draft): Arbitrary<Fuzzed> {
  const types = [
    null,
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    '',
    '/',
  ];
  const near = ['application/json; charset=utf-16', 'APPLICATION/JSON', 'application/problem+json', LONG];
  return pick([...types, ...near]).map((type) => finish(draft, `type ${type?.slice(0, 40)}`, { type }));
}

function oversize(draft: Draft): Arbitrary<Fuzzed> {
  const padded = JSON.stringify({ ...(isObject(draft.body) ? draft.body : {}), x: 'x'.repeat(66_000) });
  return fc.boolean().map((chunked) => finish(draft, 'oversize', { body: Buffer.from(padded), chunked }));
}

function otherMethod(draft: Draft): Arbitrary<Fuzzed> {
  const methods = [
    'GET',
    'HEAD',
    'POST',
    'PUT',
    'PATCH',
    'DELETE',
    'OPTIONS',
    'TRACE',
    'PROPFIND',
    'BREW',
    'get',
  ];
  return pick(methods.filter((one) => one !== draft.method)).map((method) =>
    finish({ ...draft, method }, `method ${method}`),
  );
}

function oddAuthorization(draft: Draft, world: World): Arbitrary<Fuzzed> {
  const sigil = world.token('Sigil');
  const tokens: Readonly<Record<string, string | null>> = {
    none: null,
    empty: '',
    'a Sigil': `Bearer ${sigil}`,
    'an operator': `Bearer ${world.token('Operator')}`,
    'an altered Sigil': `Bearer ${sigil.slice(0, -3)}AAA`,
    'a Sigil without signature': `Bearer ${sigil.split('.').slice(0, 2).join('.')}.`,
    basic: 'Basic dXNlcjpwYXNz',
    'no scheme': sigil,
    'no token': 'Bearer',
    two: `Bearer ${sigil}, Bearer ${sigil}`,
    long: `Bearer ${'A'.repeat(4000)}`,
    'beyond ASCII': 'Bearer \xe9\xff',
  };
  return pick(Object.entries(tokens)).map(([what, authorization]) =>
    finish({ ...draft, authorization }, `authorization: ${what}`),
  );
}

function oddHeader(draft: Draft): Arbitrary<Fuzzed> {
  const headers: readonly (readonly [string, string])[] = [
    ['X-Large', 'x'.repeat(20_000)],
    ['X-Nul', 'a\0b'],
    ['X Space', 'x'],
    ['Content-Length', '7'],
    ['Transfer-Encoding', 'gzip'],
    ['Host', 'other host'],
    ['Expect', '100-continue'],
    ['Expect', 'the unexpected'],
    ['Upgrade', 'websocket'],
    ['If-None-Match', '*'],
    ['If-None-Match', '"'],
    ['Range', 'bytes=0-1'],
    ['X-Forwarded-For', 'not an address, 1.2.3.4.5, ::::'],
    ['X-HTTP-Method-Override', 'DELETE'],
    ['Accept', 'image/png'],
    ['Accept-Encoding', 'br;q=x'],
    ['Content-Encoding', 'gzip'],
    ['Cookie', LONG],
    ['Origin', 'null'],
    ['Access-Control-Request-Method', '\xff'],
  ];
  return pick(headers).map((header) => finish(draft, `header ${header[0]}`, { headers: [header] }));
}

function oddTarget(draft: Draft): Arbitrary<Fuzzed> {
  const target = targetOf(draft);
  const [path = ''] = target.split('?');
  const targets = [
    `${path}/`,
    `/${path}`,
    `${path}/%00`,
    `${path}%`,
    `${path}/%ff%fe`,
    `${path}/../../healthz`,
    `${path}/x?${'a=1&'.repeat(2000)}`,
    `${path}?${'a='.repeat(500)}%`,
    `${path}/${'x'.repeat(9000)}`,
    `${path}\xff`,
    `${path}#x`,
    `http://other.test${path}`,
    `http://[::${path}`,
    '*',
    '//',
    path.toUpperCase(),
    path.replaceAll('/', '\\'),
    path.replaceAll('v1', 'v%31'),
    '/v1/{id}',
    '/__proto__',
  ];
  return pick(targets).map((odd) => finish(draft, `target ${odd.slice(0, 60)}`, { target: odd }));
}
