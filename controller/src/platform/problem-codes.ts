/**
 * Every `code` that a problem document of the API may carry, with what it means to the caller. This list is part of
 * the API: /docs shows it, and the tests refuse an answer whose code is not in it. A code keeps its meaning for ever.
 */
export const PROBLEM_CODES: Readonly<Record<string, string>> = {
  addresses_exhausted: 'Every address of the pool is in use or resting; try again later',
  address_gone: 'The addresses of the removed peer belong to another one by now',
  already_rolled_back: 'This audit entry was undone before',
  audit_entry_unknown: 'No such audit entry',
  bad_cursor: 'The cursor is not one of this list',
  bad_json: 'The body is not valid JSON',
  bad_request: 'The request does not fit the schema; `errors` names what is wrong where',
  body_too_large: 'The body is larger than any route reads',
  broker_unavailable: 'The message broker cannot be reached; try again later',
  database_busy: 'The database was busy; try again',
  database_unavailable: 'The database cannot be reached; try again later',
  device_limit: 'The tier allows no further device; `limit` says how many',
  endpoint_required: 'Neither the join token nor the machine names an endpoint',
  enroll_proof_invalid: 'The proof that the machine holds its identity key is not valid',
  expectation_failed: 'The Expect header asks for something other than 100-continue',
  expiry_past: 'The wished expiry is in the past',
  expiry_too_far: 'The wished expiry is further away than a Sigil may live',
  headers_too_large: 'The header fields are too large',
  idempotency_expired: 'What this Idempotency-Key made cannot be shown again',
  idempotency_key_reused: 'This Idempotency-Key came with another request before',
  internal: 'A fault of ours; the request id finds it in the log',
  join_token_invalid: 'The join token is unknown, expired or used',
  method_not_allowed: 'The path knows other methods; see Allow',
  node_exists: 'A node of this name is enrolled already',
  node_has_peers: 'The node still carries peers',
  node_retired: 'The node is retired',
  node_token_invalid: 'The node token is not valid',
  node_unknown: 'No such node',
  not_found: 'No such route',
  not_ready: 'The controller is not ready to serve; `checks` says why',
  not_reversible: 'There is no undoing this action',
  peer_exists: 'The peer is there already',
  peer_unknown: 'No such peer of this subscription',
  public_key_in_use: 'Another peer has this public key',
  rate_limited: 'Too many requests; see Retry-After',
  region_unavailable: 'No exit of the region takes new peers at the moment',
  region_unknown: 'No such region',
  request_timeout: 'The request did not arrive in time',
  sigil_expired: 'The Sigil, or its subscription, has expired',
  sigil_invalid: 'The Sigil is not one of this service',
  sigil_revoked: 'The Sigil, or its subscription, was revoked',
  sigil_unknown: 'No such Sigil',
  subscription_over: 'The subscription of the peer has expired or was revoked',
  subscription_revoked: 'The subscription was revoked',
  subscription_unknown: 'No such subscription',
  unauthorized: 'The request bears no token of the kind that the route asks for',
  unsupported_media_type: 'The body must be application/json',
  wireguard_key_in_use: 'Another node has this WireGuard key',
};

/** As Markdown, for the API's reference. */
export function problemCodesTable(): string {
  const rows = Object.entries(PROBLEM_CODES).map(([code, meaning]) => `| \`${code}\` | ${meaning} |`);
  return ['| code | meaning |', '| --- | --- |', ...rows].join('\n');
}
