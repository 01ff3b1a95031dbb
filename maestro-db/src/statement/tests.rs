use proptest::prelude::*;

use super::*;

fn look(sql: &str) -> Statement {
    scan::scan(sql)
}

#[test]
fn operation_and_table_are_read_from_the_text() {
    for (sql, operation, table) in [
        ("select 1", "SELECT", None),
        (
            "  -- why\n /* a /* nested */ one */ SELECT * FROM orders o",
            "SELECT",
            Some("orders"),
        ),
        (
            "select * from shop.orders where id = $1",
            "SELECT",
            Some("orders"),
        ),
        ("select * from only \"Orders\"", "SELECT", Some("Orders")),
        (
            "insert into orders (id) values ($1) returning id",
            "INSERT",
            Some("orders"),
        ),
        (
            "insert into orders(id) select * from unnest($1::int[])",
            "INSERT",
            Some("orders"),
        ),
        ("update orders set a = 1", "UPDATE", Some("orders")),
        ("delete from orders", "DELETE", Some("orders")),
        (
            "with x as (select 1 from a) insert into b select * from x",
            "INSERT",
            Some("b"),
        ),
        ("select * from unnest($1::int[]) as t", "SELECT", None),
        (
            "create table if not exists orders (id int)",
            "CREATE",
            Some("orders"),
        ),
        ("copy orders (id) from stdin", "COPY", Some("orders")),
        (
            "copy (select 1 from orders) to stdout",
            "COPY",
            Some("orders"),
        ),
        ("truncate table orders", "TRUNCATE", Some("orders")),
        ("frobnicate", "OTHER", None),
        ("", "OTHER", None),
    ] {
        let statement = look(sql);
        assert_eq!(statement.operation, operation, "{sql}");
        assert_eq!(statement.table.as_deref(), table, "{sql}");
    }
}

#[test]
fn transaction_control_is_found_in_any_statement_of_a_text() {
    for sql in [
        "BEGIN",
        "begin isolation level serializable",
        "START TRANSACTION",
        "commit",
        "end",
        "ROLLBACK TO SAVEPOINT a",
        "abort",
        "savepoint a",
        "release a",
        "select 1; commit",
        "select ';'; /* ; */ select $$;$$ ; -- ;\n rollback",
        "prepare transaction 'x'",
        ";;commit",
    ] {
        let statement = look(sql);
        assert!(
            matches!(statement.effect, Effect::Transaction(_)),
            "{sql}: {statement:?}"
        );
        assert!(statement.allow_on_pool().is_err(), "{sql}");
        assert!(statement.allow_in_transaction(false).is_err(), "{sql}");
    }
}

#[test]
fn session_control_is_refused_on_the_pool_and_in_transactions() {
    for sql in [
        "set search_path = x",
        "SET SESSION statement_timeout = 0",
        "set role postgres",
        "reset all",
        "discard all",
        "listen x",
        "unlisten *",
        "prepare p as select 1",
        "deallocate all",
        "load 'x'",
        "set local a.b = 'c'; set a.b = 'c'",
    ] {
        let statement = look(sql);
        assert!(
            matches!(statement.effect, Effect::Session(_)),
            "{sql}: {statement:?}"
        );
        assert!(statement.allow_on_pool().is_err(), "{sql}");
        assert!(statement.allow_in_transaction(false).is_err(), "{sql}");
    }
}

#[test]
fn local_settings_are_allowed_in_transactions_only() {
    for sql in [
        "set local a.b = 'c'",
        "SET CONSTRAINTS ALL DEFERRED",
        "declare c cursor for select 1",
    ] {
        let statement = look(sql);
        assert!(statement.allow_on_pool().is_err(), "{sql}");
        assert!(statement.allow_in_transaction(false).is_ok(), "{sql}");
        assert!(!statement.touches_session(), "{sql}");
    }
}

#[test]
fn what_says_whose_transaction_it_is_cannot_be_changed_in_a_tenants_transaction() {
    for sql in [
        "set local maestro.tenant = 'other'",
        "SET LOCAL \"maestro\".tenant = 'other'",
        "set local search_path = tenant_other",
        "set local role postgres",
        "set local session authorization postgres",
        "set local row_security = off",
        "select set_config('maestro.tenant', 'other', true)",
        "select 1; set local maestro.tenant = 'other'",
    ] {
        let statement = look(sql);
        let refused = statement.allow_in_transaction(true).expect_err(sql);
        assert_eq!(refused.kind(), ErrorKind::Isolation, "{sql}");
        assert!(statement.allow_in_transaction(false).is_ok(), "{sql}");
    }
    for sql in [
        "set local statement_timeout = 0",
        "set constraints all deferred",
        "select 1",
    ] {
        assert!(look(sql).allow_in_transaction(true).is_ok(), "{sql}");
    }
}

#[test]
fn functions_that_outlive_a_transaction_are_found_also_in_quotes() {
    for sql in [
        "select set_config('a.b', 'c', false)",
        "select pg_catalog.\"set_config\"('a.b', 'c', false)",
        "select pg_advisory_lock(1)",
        "with l as (select PG_TRY_ADVISORY_LOCK($1)) select * from l",
    ] {
        let statement = look(sql);
        assert!(statement.allow_on_pool().is_err(), "{sql}");
        assert!(statement.touches_session(), "{sql}");
    }
}

#[test]
fn a_function_body_in_sql_is_not_taken_for_transaction_control() {
    let statement = look("create function f() returns int begin atomic select 1; select 2; end");
    assert_eq!(statement.effect, Effect::Function("BEGIN ATOMIC"));
    assert!(statement.allow_in_transaction(false).is_ok());
}

#[test]
fn ordinary_statements_are_left_alone() {
    for sql in [
        "select 'BEGIN; commit'",
        "select E'it\\'s; commit' as a",
        "select $tag$; commit; $tag$, $1",
        "select \"commit\" from \"begin\"",
        "select pg_advisory_xact_lock(1)",
        "update t set value = 1",
        "select commit from t",
        "notify x",
        "select 1 -- ; commit",
        "select 1 /* ; commit */",
        "select a$b from t",
        "do $$ begin perform 1; end $$",
        "create function f() returns int language plpgsql as $$ begin return 1; end $$",
        "select case when true then 1 end",
    ] {
        let statement = look(sql);
        assert_eq!(statement.effect, Effect::None, "{sql}: {statement:?}");
    }
}

#[test]
fn a_text_is_split_at_its_semicolons_and_not_at_those_in_quotes() {
    let sql = "-- first; one\ndrop index a;\n create index a on t (b) where c = ';' ;; -- end\n";
    let statements: Vec<_> = split(sql).into_iter().map(str::trim).collect();
    assert_eq!(
        statements,
        [
            "-- first; one\ndrop index a",
            "create index a on t (b) where c = ';'"
        ]
    );
}

#[test]
fn only_statements_with_a_result_can_go_stale() {
    assert!(look("select 1").returns_rows);
    assert!(look("insert into t values (1) returning id").returns_rows);
    assert!(look("with x as (select 1) select * from x").returns_rows);
    assert!(!look("insert into t values (1)").returns_rows);
    assert!(!look("update t set a = 1").returns_rows);
}

#[test]
fn a_summary_is_one_line_of_bounded_length() {
    let long = format!("select\n\t'{}'", "ü".repeat(500));
    let statement = look(&long);
    assert!(statement.summary.starts_with("select 'ü"));
    assert!(statement.summary.len() < 260);
    assert!(!statement.summary.contains('\n'));
}

#[test]
fn a_service_that_builds_texts_without_end_is_not_remembered_without_end() {
    let statements = Statements::default();
    for n in 0..REMEMBERED * 2 {
        assert_eq!(
            statements.look_up(&format!("select {n}")).operation,
            "SELECT"
        );
    }
    assert_eq!(statements.known.read().len(), REMEMBERED);
}

proptest! {
    #[test]
    fn any_text_can_be_looked_at(sql in "\\PC*") {
        let _ = look(&sql);
    }

    #[test]
    fn quotes_comments_and_semicolons_in_any_order_can_be_looked_at(
        parts in prop::collection::vec(
            prop::sample::select(vec!["'", "\"", "$$", "$a$", "--", "\n", "/*", "*/", ";", "commit", " ", "\\", "E'", "("]),
            0..40,
        ),
    ) {
        let _ = look(&parts.concat());
    }

    #[test]
    fn nothing_in_a_string_literal_is_control(text in "[a-z ;'$/*-]{0,40}") {
        let literal = text.replace('\'', "''");
        let sql = format!("select '{literal}'");
        let statement = look(&sql);
        prop_assert_eq!(statement.effect, Effect::None, "{}", sql);
    }

    #[test]
    fn a_commit_after_any_complete_literal_is_found(text in "[a-z ;'$/*-]{0,40}") {
        let literal = text.replace('\'', "''");
        let sql = format!("select '{literal}' ; commit");
        prop_assert!(matches!(look(&sql).effect, Effect::Transaction(_)), "{}", sql);
    }
}

#[test]
fn a_text_that_ends_within_quotes_or_a_comment_gets_no_tags_that_could_close_it() {
    let tagged = Statements::new(Tags::of("orders", "1.0.0"));
    for sql in ["select 'a", "select \"a", "select e'a\\", "select $a$ $b$"] {
        assert!(tagged.look_up(sql).tagged.is_none(), "{sql}");
    }
    for sql in [
        "select 'a'",
        "select e'\\''",
        "select $a$ $b$ $a$",
        "select 1 -- '",
    ] {
        assert!(tagged.look_up(sql).tagged.is_some(), "{sql}");
    }
}
