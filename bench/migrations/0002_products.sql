create table products (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index products_by_tenant on products (tenant, created_at);
