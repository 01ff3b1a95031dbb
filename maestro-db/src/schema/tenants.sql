-- What a database with tenants needs. Runs as the database's owner; the service's login gets its
-- rights on all of it from the owner's default privileges.

create table maestro.tenants (
    id text primary key check (id ~ '^[a-z0-9][a-z0-9_-]{0,47}$'),
    name text not null,
    -- erasing: nobody enters any more, and erasure goes on where it was interrupted
    state text not null default 'active' check (state in ('active', 'suspended', 'erasing')),
    created_at timestamptz not null default clock_timestamp(),
    changed_at timestamptz not null default clock_timestamp()
);

create table maestro.tenant_audit (
    number bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    tenant text not null,
    action text not null check (action <> ''),
    -- the role, and the instance as its session names itself
    actor text not null default session_user || ' ' || coalesce(nullif(current_setting('application_name'), ''), '-'),
    detail jsonb not null default '{}'
);
create index tenant_audit_of_tenant on maestro.tenant_audit (tenant, number);

create function maestro.refuse_change() returns trigger language plpgsql as $$
begin
    raise insufficient_privilege using
        message = format('%I.%I can only be appended to', tg_table_schema, tg_table_name);
end
$$;
create trigger append_only before update or delete or truncate on maestro.tenant_audit
    for each statement execute function maestro.refuse_change();

-- Tables without a tenant on purpose: countries, currencies, the outbox.
create table maestro.shared_tables (
    name text primary key,
    reason text not null check (reason <> '')
);

-- Which tenant's schema has which migration; an error until it is applied.
create table maestro.tenant_migrations (
    tenant text not null,
    version bigint not null,
    description text not null,
    checksum bytea not null,
    error text,
    at timestamptz not null default clock_timestamp(),
    primary key (tenant, version)
);

-- The tenant of the transaction. Raises instead of returning nothing, because a policy that compares
-- with nothing makes a statement without a tenant affect no rows without a word. After a transaction
-- with SET LOCAL the setting is '', not NULL.
create function maestro.tenant() returns text language plpgsql stable parallel safe as $$
declare
    id constant text := pg_catalog.current_setting('maestro.tenant', true);
begin
    if id is null or id = '' then
        raise insufficient_privilege using
            message = 'no tenant is set for this transaction',
            hint = 'Run the statement on db.tenant(id), not on the database as a whole.';
    end if;
    return id;
end
$$;

-- Part of the message that begins a tenant's transaction.
create function maestro.enter() returns void language plpgsql stable as $$
declare
    id constant text := maestro.tenant();
    found_state text;
begin
    select t.state into found_state from maestro.tenants t where t.id = maestro.tenant();
    if found_state is null then
        raise sqlstate 'MT404' using message = format('there is no tenant %s', id);
    elsif found_state <> 'active' then
        raise sqlstate 'MT403' using message = format('tenant %s is %s', id, found_state);
    end if;
end
$$;

-- For migrations: every row of the table belongs to the tenant in this column from now on.
create function maestro.protect(target regclass, tenant_column name default 'tenant') returns void
language plpgsql as $$
begin
    execute format('alter table %s alter column %I set default maestro.tenant()', target, tenant_column);
    execute format('alter table %s alter column %I set not null', target, tenant_column);
    execute format('alter table %s enable row level security', target);
    -- The owner too: migrations and whoever becomes the owner.
    execute format('alter table %s force row level security', target);
    execute format('drop policy if exists maestro_tenant on %s', target);
    -- The sub-select is evaluated once per statement and not once per row.
    execute format(
        'create policy maestro_tenant on %s using (%I = (select maestro.tenant())) with check (%I = (select maestro.tenant()))',
        target, tenant_column, tenant_column);
end
$$;

-- For migrations: this table has no tenant, and that is no oversight.
create function maestro.share(target regclass, reason text) returns void language sql as $$
    insert into maestro.shared_tables (name, reason)
    select format('%I.%I', n.nspname, c.relname), reason
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = target
    on conflict (name) do update set reason = excluded.reason
$$;
