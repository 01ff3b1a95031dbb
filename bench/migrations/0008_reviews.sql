create table reviews (
    id uuid primary key,
    tenant text not null,
    state text not null default 'new',
    body jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index reviews_by_tenant on reviews (tenant, created_at);
