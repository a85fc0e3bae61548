/**
 * Scrubs what must never be written down out of anything that is about to be: private and public keys, tokens, network
 * addresses and e-mail addresses. Loggers put every record through this, so that no single log line has to be careful.
 *
 * Rather too much than too little: a version number that looks like an address goes as well.
 */

/** Fields whose value goes whatever it looks like. */
const SECRET_FIELD =
  /^(?:.*(?:password|passwd|secret|private_?key|preshared_?key|authorization|cookie|credential)|(?:.*_)?token|jws|jwt|proof|endpoint|allowed_?ips)$/i;
const GONE = '[redacted]';
const DEEPEST = 8;

/** In this order: what is longer and surer goes first. */
const PATTERNS: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g, '[private key]'],
  // Compact JWS and JWE: base64url of `{"` first.
  [/\beyJ[\w-]*(?:\.[\w-]*){1,4}/g, '[jwt]'],
  // Our own tokens, e.g. join tokens: kf, a kind, a version, the secret.
  [/\bkf[a-z]{1,8}\d?_[\w-]{16,}/g, '[token]'],
  [/\b(Bearer|Basic) +[\w.~+/=-]{8,}/gi, '$1 [token]'],
  // Stripe's and other vendors' keys.
  [/\b(?:sk|rk|pk|whsec)_[A-Za-z0-9_]{8,}/g, '[token]'],
  // Credentials of a URL.
  [/(\w+:\/\/)[^\s/@"']+@/g, '$1[redacted]@'],
  // WireGuard keys (public ones name a device).
  [/(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=/g, '[key]'],
  [/[\w.%+-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)+/g, '[email]'],
];

const IPV4 = /(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)/g;
/** Hexadecimal digits and colons, with an IPv4 tail or not; `isIpv6` decides. */
const IPV6_CANDIDATE = /(?<![\w:.])[0-9a-fA-F:]{2,45}(?:(?:\.\d{1,3}){3})?(?![\w:])/g;

/** Eight groups, or fewer with one `::`. A time of day (12:34:56) is neither. */
function isIpv6(text: string): boolean {
  const groups = text.split(':');
  if (groups.some((group) => group.length > 4 && !group.includes('.'))) return false;
  if (text.includes('::')) return /[0-9a-fA-F]/.test(text) && groups.length <= 9;
  return groups.length >= 7;
}

/** Scrubs one text, also a finished log line. */
export function redactText(text: string): string {
  let clean = text;
  for (const [pattern, replacement] of PATTERNS) clean = clean.replace(pattern, replacement);
  clean = clean.replace(IPV6_CANDIDATE, (candidate) => (isIpv6(candidate) ? '[ip]' : candidate));
  return clean.replace(IPV4, '[ip]');
}

/**
 * Scrubs any value that may be logged: strings by what they look like, fields also by their name, errors down to name,
 * code, message and cause. Never throws; what it cannot look into is left out.
 */
export function redact(value: unknown, depth = 0): unknown {
  if (typeof value === 'string') return redactText(value);
  if (typeof value !== 'object' || value === null) return typeof value === 'bigint' ? String(value) : value;
  if (depth >= DEEPEST) return GONE;
  if (value instanceof Error) return redactError(value, depth);
  if (Array.isArray(value)) return value.map((item) => redact(item, depth + 1));
  if (value instanceof Date) return value.toJSON();
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) return GONE;
  const entries = value instanceof Map ? [...value.entries()] : Object.entries(value);
  return Object.fromEntries(
    entries.map(([key, field]) => {
      const name = redactText(String(key));
      return [name, SECRET_FIELD.test(name) && field != null ? GONE : redact(field, depth + 1)];
    }),
  );
}

function redactError(error: Error, depth: number): Record<string, unknown> {
  const { name, message, stack, cause } = error;
  const code = (error as { code?: unknown }).code;
  return {
    type: name,
    ...(typeof code === 'string' || typeof code === 'number' ? { code } : {}),
    message: redactText(message),
    // The frames only: the first lines of a stack repeat the message.
    stack: redactText(
      (stack ?? '')
        .split('\n')
        .filter((line) => /^\s+at /.test(line))
        .slice(0, 6)
        .join('\n'),
    ),
    ...(cause === undefined ? {} : { cause: redact(cause, depth + 1) }),
  };
}
