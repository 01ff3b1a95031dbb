create table shipments (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index shipments_by_tenant on shipments (tenant, created_at);
