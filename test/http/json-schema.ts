/**
 * The part of JSON Schema that our OpenAPI document uses, in both directions: what a schema finds wrong with a value,
 * and values that it finds nothing wrong with. An unknown keyword is an error: a check that was not made must not look
 * like one that passed.
 */
import fc, { type Arbitrary } from 'fast-check';

export interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly Schema[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: boolean | Schema;
  readonly items?: Schema;
  readonly pattern?: string;
  readonly format?: string;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly default?: unknown;
}

const KNOWN = new Set(
  (
    '$ref type enum anyOf properties required additionalProperties items pattern format minLength maxLength minimum ' +
    'maximum minItems maxItems default'
  ).split(' '),
);
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;
const FORMATS: Readonly<Record<string, (text: string) => boolean>> = {
  uuid: (text) => UUID.test(text),
  'date-time': (text) => /^\d{4}-\d{2}-\d{2}T/.test(text) && !Number.isNaN(Date.parse(text)),
};

/** Follows references of the document, one after another. */
export type Resolve = (schema: Schema) => Schema;

export function resolver(document: { components?: { schemas?: Record<string, Schema> } }): Resolve {
  return (schema) => {
    const name = schema.$ref?.split('/').at(-1);
    if (name === undefined) return schema;
    const found = document.components?.schemas?.[name];
    if (!found) throw new Error(`the document has no schema ${name}`);
    return found;
  };
}

const typeOf = (value: unknown) => (value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value);

function isOfType(value: unknown, type: string): boolean {
  return type === 'integer' ? Number.isInteger(value) : typeOf(value) === type;
}

/** What is wrong with `value`, one line each. */
export function violations(schema: Schema, value: unknown, resolve: Resolve, at = '$'): string[] {
  const here = resolve(schema);
  for (const keyword of Object.keys(here)) {
    if (!KNOWN.has(keyword)) throw new Error(`unknown keyword of JSON Schema: ${keyword}`);
  }
  if (here.anyOf) {
    const fits = here.anyOf.some((one) => violations(one, value, resolve, at).length === 0);
    return fits ? [] : [`${at}: fits no alternative`];
  }
  const types = here.type === undefined ? [] : [here.type].flat();
  if (types.length > 0 && !types.some((type) => isOfType(value, type)))
    return [`${at}: not of type ${types}`];
  if (here.enum && !here.enum.includes(value)) return [`${at}: none of the allowed values`];
  if (typeof value === 'string') return textViolations(here, value, at);
  if (typeof value === 'number') return rangeViolations(here, value, at);
  if (Array.isArray(value)) {
    const { items, minItems = 0, maxItems = Number.POSITIVE_INFINITY } = here;
    if (value.length < minItems || value.length > maxItems) return [`${at}: length`];
    return items ? value.flatMap((item, index) => violations(items, item, resolve, `${at}[${index}]`)) : [];
  }
  return typeOf(value) === 'object' ? objectViolations(here, value as object, resolve, at) : [];
}

function textViolations(
  { pattern, format, minLength = 0, maxLength }: Schema,
  text: string,
  at: string,
): string[] {
  if (pattern !== undefined && !new RegExp(pattern, 'u').test(text)) return [`${at}: not of the pattern`];
  if (text.length < minLength || text.length > (maxLength ?? Number.POSITIVE_INFINITY))
    return [`${at}: length`];
  if (format === undefined) return [];
  const check = FORMATS[format];
  if (!check) throw new Error(`unknown format: ${format}`);
  return check(text) ? [] : [`${at}: no ${format}`];
}

function rangeViolations({ minimum, maximum }: Schema, value: number, at: string): string[] {
  const outside = value < (minimum ?? -Infinity) || value > (maximum ?? Infinity);
  return outside ? [`${at}: out of range`] : [];
}

function objectViolations(schema: Schema, value: object, resolve: Resolve, at: string): string[] {
  const { properties = {}, required = [], additionalProperties } = schema;
  const missing = required.filter((name) => !(name in value)).map((name) => `${at}.${name}: missing`);
  const present = Object.entries(value).flatMap(([name, item]) => {
    const known = Object.hasOwn(properties, name) ? properties[name] : undefined;
    if (known) return violations(known, item, resolve, `${at}.${name}`);
    if (additionalProperties === false) return [`${at}.${name}: not a property`];
    return typeof additionalProperties === 'object'
      ? violations(additionalProperties, item, resolve, `${at}.${name}`)
      : [];
  });
  return [...missing, ...present];
}

/**
 * Values that fit a schema.
 * @param known by the name of a property: values that exist in the world under test, mixed in with made-up ones
 */
export function valid(
  schema: Schema,
  resolve: Resolve,
  known: (name: string) => Arbitrary<unknown> | undefined,
  name = '',
): Arbitrary<unknown> {
  const here = resolve(schema);
  const real = known(name);
  const made = makeUp(here, resolve, known);
  return real ? fc.oneof({ weight: 3, arbitrary: real }, { weight: 1, arbitrary: made }) : made;
}

function makeUp(schema: Schema, resolve: Resolve, known: (name: string) => Arbitrary<unknown> | undefined) {
  const { enum: values, properties = {}, required = [], minimum, maximum, items, anyOf } = schema;
  if (values) return fc.constantFrom(...values);
  if (anyOf) return fc.oneof(...anyOf.map((one) => valid(one, resolve, known)));
  const [type] = [schema.type].flat();
  switch (type) {
    case 'string':
      return text(schema);
    case 'boolean':
      return fc.boolean();
    case 'integer':
      return fc.integer({ min: minimum ?? -1e9, max: maximum ?? 1e9 });
    case 'number':
      return fc.double({ min: minimum ?? -1e9, max: maximum ?? 1e9, noNaN: true });
    case 'object': {
      const fields = Object.entries(properties).map(([name, field]) => [
        name,
        valid(field, resolve, known, name),
      ]);
      return fc.record(Object.fromEntries(fields) as Record<string, Arbitrary<unknown>>, {
        requiredKeys: [...required],
      });
    }
    case 'array': {
      const { minItems = 0, maxItems = 3 } = schema;
      return fc.array(valid(items ?? {}, resolve, known), {
        minLength: minItems,
        maxLength: Math.max(minItems, Math.min(maxItems, 3)),
      });
    }
    default:
      throw new Error(`cannot make up a value of ${JSON.stringify(schema)}`);
  }
}

function text({ pattern, format, minLength = 0, maxLength = 64 }: Schema): Arbitrary<string> {
  if (format === 'uuid') return fc.uuid();
  if (format === 'date-time') {
    const max = new Date('2100-01-01');
    return fc.date({ min: new Date(0), max, noInvalidDate: true }).map((at) => at.toISOString());
  }
  if (pattern !== undefined) return fc.stringMatching(new RegExp(pattern, 'u'));
  return fc.string({ minLength, maxLength, unit: fc.constantFrom(...'aZ é🦊', '\u202e', '\0', '\ud800') });
}
