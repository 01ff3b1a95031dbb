//! What a client of the service sees when something fails: RFC 9457 problem details.

use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error as an HTTP response (`application/problem+json`, RFC 9457).
///
/// `?` on a client's error makes one: the log gets the cause, the caller of the service gets the
/// status and a sentence, never a host, a statement or a credential. Unavailable and timed-out
/// dependencies answer 503 with `Retry-After`, conflicts 409, the rest 500.
///
/// ```
/// # use maestro::Problem;
/// async fn show(id: u32) -> Result<String, Problem> {
///     Err(Problem::not_found(format!("there is no order {id}")))
/// }
///
/// async fn cancel(id: u32) -> Result<(), Problem> {
///     Err(Problem::conflict(format!("order {id} has been sent already")))
/// }
/// ```
pub struct Problem {
    status: StatusCode,
    detail: String,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem with this status and a sentence for the caller.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 409.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 503 with `Retry-After`, rounded up to whole seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use maestro::Problem;
    ///
    /// let problem = Problem::unavailable("the price list is being loaded", Duration::from_secs(2));
    /// assert_eq!(problem.status().as_u16(), 503);
    /// ```
    pub fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    /// The status it answers with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    #[cfg(any(feature = "db", feature = "cache", feature = "messaging"))]
    fn of(cause: Cause, error: &(dyn std::error::Error + 'static)) -> Self {
        match cause {
            Cause::Unavailable => {
                tracing::warn!(error, "a dependency is unavailable; answering 503");
                Self::unavailable(
                    "a dependency of the service is unavailable at the moment",
                    RETRY_AFTER,
                )
            }
            Cause::Conflict => Self::conflict("the request conflicts with another one"),
            Cause::Internal => {
                tracing::error!(error, "request failed; answering 500");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the service could not handle the request",
                )
            }
        }
    }
}

/// What a client's error means to an HTTP caller.
#[cfg(any(feature = "db", feature = "cache", feature = "messaging"))]
#[derive(Clone, Copy)]
enum Cause {
    Unavailable,
    Conflict,
    Internal,
}

/// Long enough for a restart of a server, short enough to be tried by a waiting person.
#[cfg(any(feature = "db", feature = "cache", feature = "messaging"))]
const RETRY_AFTER: Duration = Duration::from_secs(2);

#[cfg(feature = "db")]
impl From<maestro_db::Error> for Problem {
    fn from(error: maestro_db::Error) -> Self {
        use maestro_db::ErrorKind;
        let cause = match error.kind() {
            ErrorKind::Conflict | ErrorKind::Serialization => Cause::Conflict,
            // Whether a lost commit took effect is unknown: the caller finds out by asking again.
            ErrorKind::Exhausted | ErrorKind::Unknown => Cause::Unavailable,
            _ if error.is_transient() => Cause::Unavailable,
            _ => Cause::Internal,
        };
        Self::of(cause, &error)
    }
}

#[cfg(feature = "db")]
impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        maestro_db::Error::from(error).into()
    }
}

#[cfg(feature = "cache")]
impl From<maestro_cache::Error> for Problem {
    fn from(error: maestro_cache::Error) -> Self {
        let cause = if error.is_transient() {
            Cause::Unavailable
        } else {
            Cause::Internal
        };
        Self::of(cause, &error)
    }
}

#[cfg(feature = "messaging")]
impl From<maestro_messaging::Error> for Problem {
    fn from(error: maestro_messaging::Error) -> Self {
        let cause = if error.is_transient() {
            Cause::Unavailable
        } else {
            Cause::Internal
        };
        Self::of(cause, &error)
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.status, self.detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(after) = self.retry_after {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(after.as_secs() + u64::from(after.subsec_nanos() > 0)),
            );
        }
        response
    }
}
