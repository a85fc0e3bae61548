/** What the tables of configuration variables are made of. */
import { z } from 'zod';

export interface Variable<S extends z.ZodType = z.ZodType> {
  readonly schema: S;
  /** As it would be written in the environment; a function of the machine where it depends on that. */
  readonly fallback?: string | ((root: boolean) => string);
  /** What the table shows instead of the fallback. */
  readonly shown?: string;
  readonly meaning: string;
}

export const variable = <S extends z.ZodType>(
  schema: S,
  meaning: string,
  fallback?: Variable['fallback'],
  shown?: string,
): Variable<S> => ({
  schema,
  meaning,
  ...(fallback === undefined ? {} : { fallback }),
  ...(shown === undefined ? {} : { shown }),
});

export const whole = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,15}$/, 'a whole number')
    .transform(Number)
    .pipe(z.number().min(min).max(max));

export const url = (...protocols: string[]) =>
  z.string().refine(
    (text) => {
      const parsed = URL.canParse(text) ? new URL(text) : null;
      return parsed !== null && protocols.includes(parsed.protocol);
    },
    `a URL of ${protocols.map((protocol) => `${protocol}//`).join(' or ')}`,
  );

/** Without a slash at its end. */
export const webUrl = url('http:', 'https:').transform((text) => text.replace(/\/+$/, ''));

export const path = z.string().min(1);

/** Parts by comma. */
export const list = z.string().transform((text) => text.split(',').map((part) => part.trim()));
