//! Without feature `otlp` no span has a context.

use crate::context::Context;

pub(crate) fn current() -> Option<Context> {
    None
}
