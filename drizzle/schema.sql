-- The migrated schema, read back from pg_catalog. Made by a test; not a script to run.

create table address_pool (
  id integer not null,
  sequential_until integer not null,
  drawn integer not null,
  prefix4 integer,
  constraint address_pool_pkey PRIMARY KEY (id)
);

create table audit_log (
  id bigint generated always as identity not null,
  at timestamp with time zone not null default now(),
  actor text not null,
  action text not null,
  subject text not null,
  detail jsonb not null,
  constraint audit_log_pkey PRIMARY KEY (id)
);

create table claims (
  claim uuid not null,
  subscription_id uuid not null,
  created_at timestamp with time zone not null default now(),
  constraint claims_pkey PRIMARY KEY (claim),
  constraint claims_subscription_id_subscriptions_id_fk FOREIGN KEY (subscription_id) REFERENCES subscriptions(id),
  constraint claims_subscription_id_unique UNIQUE (subscription_id)
);

create table demand_samples (
  region_id text not null,
  at timestamp with time zone not null,
  peers integer not null,
  capacity integer not null,
  constraint demand_samples_region_id_at_pk PRIMARY KEY (region_id, at),
  constraint demand_samples_region_id_regions_id_fk FOREIGN KEY (region_id) REFERENCES regions(id)
);

create table devices (
  subscription_id uuid not null,
  jkt text not null,
  bound_at timestamp with time zone not null,
  revoked_at timestamp with time zone,
  constraint devices_subscription_id_jkt_pk PRIMARY KEY (subscription_id, jkt),
  constraint devices_subscription_id_subscriptions_id_fk FOREIGN KEY (subscription_id) REFERENCES subscriptions(id)
);

create table drains (
  id uuid not null,
  node_id text not null,
  state text not null,
  wanted_by text not null,
  before text not null,
  deadline timestamp with time zone,
  total integer not null,
  moved integer not null default 0,
  stranded integer not null default 0,
  started_at timestamp with time zone not null,
  ended_at timestamp with time zone,
  constraint drains_pkey PRIMARY KEY (id),
  constraint drains_node_id_nodes_id_fk FOREIGN KEY (node_id) REFERENCES nodes(id),
  constraint drains_state CHECK ((state = ANY (ARRAY['running'::text, 'paused'::text, 'cancelled'::text, 'done'::text])))
);

create table entitlements (
  id uuid not null,
  source text not null,
  reference text not null,
  subscription_id uuid,
  claim uuid,
  tier text,
  standing text not null,
  renews boolean not null,
  expires_at timestamp with time zone not null,
  contested boolean not null default false,
  live boolean not null,
  read_at timestamp with time zone not null,
  created_at timestamp with time zone not null default now(),
  constraint entitlements_pkey PRIMARY KEY (id),
  constraint entitlements_reference UNIQUE (source, reference),
  constraint entitlements_subscription_id_subscriptions_id_fk FOREIGN KEY (subscription_id) REFERENCES subscriptions(id)
);

create table idempotency_keys (
  scope text not null,
  key text not null,
  request_hash text not null,
  resource_id uuid not null,
  created_at timestamp with time zone not null default now(),
  constraint idempotency_keys_scope_key_pk PRIMARY KEY (scope, key)
);

create table join_tokens (
  id uuid not null,
  hash text not null,
  region_id text not null,
  node_id text not null,
  endpoint text,
  capacity integer not null,
  created_by text not null,
  created_at timestamp with time zone not null default now(),
  expires_at timestamp with time zone not null,
  used_at timestamp with time zone,
  used_by text,
  tunnels integer not null default 1,
  constraint join_tokens_pkey PRIMARY KEY (id),
  constraint join_tokens_hash_unique UNIQUE (hash),
  constraint join_tokens_region_id_regions_id_fk FOREIGN KEY (region_id) REFERENCES regions(id)
);

create table machines (
  id uuid not null,
  region_id text not null,
  node_id text not null,
  provider text not null,
  growth jsonb not null,
  state text not null,
  reason text not null,
  wanted_by text not null,
  replaces text,
  ref text,
  address text,
  tries integer not null default 0,
  problem text,
  next_try_at timestamp with time zone not null,
  since timestamp with time zone not null,
  wanted_at timestamp with time zone not null,
  ended_at timestamp with time zone,
  constraint machines_pkey PRIMARY KEY (id),
  constraint machines_region_id_regions_id_fk FOREIGN KEY (region_id) REFERENCES regions(id),
  constraint machines_state CHECK ((state = ANY (ARRAY['wanted'::text, 'creating'::text, 'booting'::text, 'serving'::text, 'leaving'::text, 'removing'::text, 'gone'::text, 'failed'::text])))
);

create table node_health (
  node_id text not null,
  state text not null,
  reason text not null,
  since timestamp with time zone not null,
  flaps integer not null,
  constraint node_health_pkey PRIMARY KEY (node_id),
  constraint node_health_node_id_nodes_id_fk FOREIGN KEY (node_id) REFERENCES nodes(id),
  constraint node_health_state CHECK ((state = ANY (ARRAY['ok'::text, 'suspect'::text, 'down'::text])))
);

create table node_reports (
  node_id text not null,
  applied_lineage bigint not null default 0,
  applied_generation bigint not null default 0,
  agent_version text,
  last_seen_at timestamp with time zone,
  left_at timestamp with time zone,
  health jsonb,
  constraint node_reports_pkey PRIMARY KEY (node_id),
  constraint node_reports_node_id_nodes_id_fk FOREIGN KEY (node_id) REFERENCES nodes(id)
);

create table nodes (
  id text not null,
  region_id text not null,
  state text not null default 'joining'::text,
  endpoint text not null,
  public_key text not null,
  identity jsonb not null,
  listen_port integer not null,
  mtu integer not null,
  capacity integer not null,
  bandwidth_mbit integer,
  provider text,
  peer_count integer not null default 0,
  lineage bigint not null default 1,
  generation bigint not null default 0,
  digest bit(128) not null default (repeat('0'::text, 128))::bit(128),
  config_generation bigint not null default 0,
  swept_generation bigint not null default 0,
  upkeep jsonb,
  maintenance_until timestamp with time zone,
  allow_shrink boolean not null default false,
  created_at timestamp with time zone not null default now(),
  retired_at timestamp with time zone,
  tunnels integer not null default 1,
  constraint nodes_pkey PRIMARY KEY (id),
  constraint nodes_public_key_unique UNIQUE (public_key),
  constraint nodes_region_id_regions_id_fk FOREIGN KEY (region_id) REFERENCES regions(id),
  constraint nodes_state CHECK ((state = ANY (ARRAY['joining'::text, 'active'::text, 'cordoned'::text, 'draining'::text, 'drained'::text, 'retired'::text])))
);

create table operator_commands (
  id uuid not null,
  operator text not null,
  node_id text not null,
  at timestamp with time zone not null,
  forget_at timestamp with time zone not null,
  constraint operator_commands_pkey PRIMARY KEY (id)
);

create table operator_keys (
  name text not null,
  public_jwk jsonb not null,
  thumbprint text not null,
  created_by text not null,
  created_at timestamp with time zone not null,
  revoked_at timestamp with time zone,
  constraint operator_keys_pkey PRIMARY KEY (name),
  constraint operator_keys_thumbprint_unique UNIQUE (thumbprint)
);

create table peers (
  id uuid not null,
  subscription_id uuid not null,
  public_key text not null,
  address_index integer not null,
  region_id text not null,
  device text,
  created_at timestamp with time zone not null default now(),
  provisioned_at timestamp with time zone not null default now(),
  constraint peers_pkey PRIMARY KEY (id),
  constraint peers_address_index_unique UNIQUE (address_index),
  constraint peers_public_key_unique UNIQUE (public_key),
  constraint peers_region_id_regions_id_fk FOREIGN KEY (region_id) REFERENCES regions(id)
);

create table placements (
  node_id text not null,
  public_key text not null,
  peer_id uuid,
  ipv4 text not null,
  ipv6 text not null,
  role text not null,
  rank integer not null,
  generation bigint not null,
  removed boolean not null default false,
  release_at timestamp with time zone,
  constraint placements_node_id_public_key_pk PRIMARY KEY (node_id, public_key),
  constraint placements_role CHECK ((role = ANY (ARRAY['primary'::text, 'standby'::text, 'leaving'::text]))),
  constraint placements_tombstone CHECK ((removed = (peer_id IS NULL)))
);

create table reboots (
  id uuid not null,
  node_id text not null,
  state text not null,
  wanted_by text not null,
  any_time boolean not null default false,
  wanted_at timestamp with time zone not null,
  leased_at timestamp with time zone,
  until timestamp with time zone,
  ended_at timestamp with time zone,
  reason text,
  cleared_at timestamp with time zone,
  constraint reboots_pkey PRIMARY KEY (id),
  constraint reboots_node_id_nodes_id_fk FOREIGN KEY (node_id) REFERENCES nodes(id),
  constraint reboots_state CHECK ((state = ANY (ARRAY['wanted'::text, 'leased'::text, 'done'::text, 'failed'::text, 'cancelled'::text])))
);

create table regions (
  id text not null,
  name text not null,
  country text not null,
  latitude double precision not null,
  longitude double precision not null,
  time_zone text,
  min_exits integer not null default 0,
  growth jsonb,
  created_at timestamp with time zone not null default now(),
  haven jsonb,
  ssh_from_mesh boolean not null default false,
  constraint regions_pkey PRIMARY KEY (id)
);

create table resting_addresses (
  address_index integer not null,
  released_at timestamp with time zone not null,
  constraint resting_addresses_pkey PRIMARY KEY (address_index)
);

create table rollout_nodes (
  rollout_id uuid not null,
  node_id text not null,
  wave integer not null,
  state text not null default 'waiting'::text,
  before text,
  since timestamp with time zone not null,
  reason text,
  constraint rollout_nodes_rollout_id_node_id_pk PRIMARY KEY (rollout_id, node_id),
  constraint rollout_nodes_node_id_nodes_id_fk FOREIGN KEY (node_id) REFERENCES nodes(id),
  constraint rollout_nodes_rollout_id_rollouts_id_fk FOREIGN KEY (rollout_id) REFERENCES rollouts(id),
  constraint rollout_nodes_state CHECK ((state = ANY (ARRAY['waiting'::text, 'updating'::text, 'updated'::text, 'failed'::text, 'skipped'::text, 'reverting'::text, 'reverted'::text])))
);

create table rollouts (
  id uuid not null,
  version text not null,
  state text not null,
  wave integer not null default 0,
  waves integer not null,
  wave_since timestamp with time zone not null,
  soak_seconds integer not null,
  timeout_seconds integer not null,
  max_failures integer not null,
  unwell integer not null default 0,
  wanted_by text not null,
  reason text,
  started_at timestamp with time zone not null,
  ended_at timestamp with time zone,
  constraint rollouts_pkey PRIMARY KEY (id),
  constraint rollouts_state CHECK ((state = ANY (ARRAY['running'::text, 'paused'::text, 'rolling_back'::text, 'rolled_back'::text, 'cancelled'::text, 'done'::text])))
);

create table sigils (
  id uuid not null,
  subscription_id uuid not null,
  token_hash text not null,
  kid text not null,
  tier text not null,
  issuer text not null,
  device text,
  bindings text[],
  issued_at timestamp with time zone not null,
  expires_at timestamp with time zone not null,
  revoked_at timestamp with time zone,
  idempotency_key text,
  request_hash text,
  constraint sigils_pkey PRIMARY KEY (id),
  constraint sigils_idempotency_key_unique UNIQUE (idempotency_key),
  constraint sigils_subscription_id_subscriptions_id_fk FOREIGN KEY (subscription_id) REFERENCES subscriptions(id),
  constraint sigils_token_hash_unique UNIQUE (token_hash)
);

create table signing_keys (
  kid text not null,
  use text not null,
  public_jwk jsonb not null,
  sealed_jwk text not null,
  created_at timestamp with time zone not null default now(),
  retired_at timestamp with time zone,
  expires_at timestamp with time zone,
  constraint signing_keys_pkey PRIMARY KEY (kid)
);

create table store_cursors (
  store text not null,
  through timestamp with time zone not null,
  constraint store_cursors_pkey PRIMARY KEY (store)
);

create table store_messages (
  store text not null,
  event_id text not null,
  type text not null,
  reference text,
  received_at timestamp with time zone not null,
  handled_at timestamp with time zone,
  constraint store_messages_store_event_id_pk PRIMARY KEY (store, event_id)
);

create table store_reads (
  store text not null,
  reference text not null,
  wanted integer not null default 1,
  since timestamp with time zone not null,
  due_at timestamp with time zone not null,
  background boolean not null,
  attempts integer not null default 0,
  fence uuid,
  leased_until timestamp with time zone,
  constraint store_reads_store_reference_pk PRIMARY KEY (store, reference)
);

create table subscriptions (
  id uuid not null,
  tier text not null,
  expires_at timestamp with time zone not null,
  revoked_at timestamp with time zone,
  lapsed_at timestamp with time zone,
  peer_count integer not null default 0,
  created_at timestamp with time zone not null default now(),
  constraint subscriptions_pkey PRIMARY KEY (id)
);

create table suspended_peers (
  id uuid not null,
  subscription_id uuid not null,
  public_key text not null,
  address_index integer not null,
  region_id text not null,
  device text,
  created_at timestamp with time zone not null,
  suspended_at timestamp with time zone not null,
  constraint suspended_peers_pkey PRIMARY KEY (id),
  constraint suspended_peers_region_id_regions_id_fk FOREIGN KEY (region_id) REFERENCES regions(id),
  constraint suspended_peers_subscription_id_subscriptions_id_fk FOREIGN KEY (subscription_id) REFERENCES subscriptions(id)
);

create table vouchers (
  code_hash text not null,
  id uuid not null,
  tier text not null,
  days integer not null,
  redeem_before timestamp with time zone not null,
  claim uuid,
  redeemed_at timestamp with time zone,
  created_at timestamp with time zone not null default now(),
  constraint vouchers_pkey PRIMARY KEY (code_hash),
  constraint vouchers_id_unique UNIQUE (id)
);

CREATE INDEX audit_log_action ON public.audit_log USING btree (action, id);
CREATE INDEX audit_log_subject ON public.audit_log USING btree (subject, id);
CREATE INDEX drains_node ON public.drains USING btree (node_id, started_at);
CREATE UNIQUE INDEX drains_open ON public.drains USING btree (node_id) WHERE (state = ANY (ARRAY['running'::text, 'paused'::text]));
CREATE INDEX entitlements_ending ON public.entitlements USING btree (expires_at) WHERE live;
CREATE INDEX entitlements_renewing ON public.entitlements USING btree (expires_at) WHERE renews;
CREATE INDEX entitlements_subscription ON public.entitlements USING btree (subscription_id);
CREATE INDEX idempotency_keys_created ON public.idempotency_keys USING btree (created_at);
CREATE UNIQUE INDEX machines_node ON public.machines USING btree (node_id);
CREATE INDEX machines_open ON public.machines USING btree (next_try_at) WHERE (ended_at IS NULL);
CREATE UNIQUE INDEX machines_replaces ON public.machines USING btree (replaces) WHERE (ended_at IS NULL);
CREATE INDEX nodes_region ON public.nodes USING btree (region_id);
CREATE INDEX operator_commands_order ON public.operator_commands USING btree (operator, node_id, at);
CREATE INDEX peers_subscription ON public.peers USING btree (subscription_id, id);
CREATE INDEX placements_log ON public.placements USING btree (node_id, generation);
CREATE INDEX placements_peer ON public.placements USING btree (peer_id);
CREATE INDEX placements_release ON public.placements USING btree (release_at) WHERE (release_at IS NOT NULL);
CREATE INDEX reboots_node ON public.reboots USING btree (node_id, wanted_at);
CREATE UNIQUE INDEX reboots_open ON public.reboots USING btree (node_id) WHERE (ended_at IS NULL);
CREATE INDEX resting_addresses_released ON public.resting_addresses USING btree (released_at);
CREATE UNIQUE INDEX rollouts_open ON public.rollouts USING btree ((true)) WHERE (ended_at IS NULL);
CREATE INDEX sigils_expiry ON public.sigils USING btree (expires_at);
CREATE INDEX sigils_subscription ON public.sigils USING btree (subscription_id, device);
CREATE INDEX signing_keys_use ON public.signing_keys USING btree (use);
CREATE INDEX store_messages_handled ON public.store_messages USING btree (handled_at);
CREATE INDEX store_messages_waiting ON public.store_messages USING btree (store, reference) WHERE (handled_at IS NULL);
CREATE INDEX store_reads_due ON public.store_reads USING btree (store, background, due_at);
CREATE INDEX subscriptions_lapsing ON public.subscriptions USING btree (expires_at) WHERE ((lapsed_at IS NULL) AND (revoked_at IS NULL));
CREATE INDEX suspended_peers_subscription ON public.suspended_peers USING btree (subscription_id, id);
