//! Filling a region before traffic comes.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::region::Region;

/// How far warming is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warmed {
    /// Values that were there already.
    pub present: usize,
    /// Values that were loaded.
    pub loaded: usize,
    /// Loads that failed; they are logged, and the first reader tries again.
    pub failed: usize,
    /// Values in all.
    pub total: usize,
}

impl Warmed {
    /// Values that have been looked at.
    pub const fn done(&self) -> usize {
        self.present + self.loaded + self.failed
    }
}

/// Warms a region; made by [`Region::warm`].
#[must_use = "nothing is loaded until `run` is called"]
pub struct Warming<'a, T> {
    region: &'a Region<T>,
    ids: Vec<String>,
    at_a_time: usize,
    progress: Option<Box<dyn FnMut(Warmed) + Send + 'a>>,
}

/// Ids looked up in one round trip.
const LOOKED_UP: usize = 500;

impl<T> fmt::Debug for Warming<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warming")
            .field("total", &self.ids.len())
            .field("at_a_time", &self.at_a_time)
            .finish_non_exhaustive()
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Region<T> {
    /// Loads the values of these ids that are not in Redis yet, so that the first requests find them.
    ///
    /// ```no_run
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Report;
    /// # async fn load(id: String) -> Result<Report, std::io::Error> { Ok(Report) }
    /// # async fn warm(reports: &maestro_cache::Region<Report>) {
    /// let warmed = reports
    ///     .warm(["1", "2", "3"])
    ///     .at_a_time(8)
    ///     .progress(|so_far| tracing::info!(done = so_far.done(), total = so_far.total, "warming"))
    ///     .run(load)
    ///     .await;
    /// assert_eq!(warmed.done(), 3);
    /// # }
    /// ```
    pub fn warm<I>(&self, ids: I) -> Warming<'_, T>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Warming {
            region: self,
            ids: ids.into_iter().map(Into::into).collect(),
            at_a_time: 16,
            progress: None,
        }
    }
}

impl<'a, T: Serialize + DeserializeOwned + Send + Sync + 'static> Warming<'a, T> {
    /// Loads at a time, 16 unless told: the origin serves others too. 0 counts as 1.
    pub fn at_a_time(mut self, loads: usize) -> Self {
        self.at_a_time = loads.max(1);
        self
    }

    /// Called after every value.
    pub fn progress(mut self, progress: impl FnMut(Warmed) + Send + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Warms the region. While Redis is away nothing is loaded, because nothing could be kept:
    /// those values count as failed.
    ///
    /// Dropping the future stops before the next load; loads under way finish.
    pub async fn run<F, Fut, E>(mut self, loader: F) -> Warmed
    where
        F: Fn(String) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let mut warmed = Warmed {
            total: self.ids.len(),
            ..Warmed::default()
        };
        for ids in std::mem::take(&mut self.ids).chunks(LOOKED_UP) {
            let found = match self.region.get_many(ids).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(region = self.region.name(), %error, "values were not warmed");
                    warmed.failed += ids.len();
                    self.report(warmed);
                    continue;
                }
            };
            let mut missing = Vec::new();
            for (id, found) in ids.iter().zip(found) {
                if found.is_none() {
                    missing.push(id);
                    continue;
                }
                warmed.present += 1;
                self.report(warmed);
            }
            let region = self.region;
            let mut loads = Vec::with_capacity(missing.len());
            for id in missing {
                let (loader, load_id) = (loader.clone(), id.clone());
                let entry = region.entry(id.clone());
                loads.push(entry.get_or_load(move || loader(load_id)));
            }
            let mut loads = stream::iter(loads).buffer_unordered(self.at_a_time);
            while let Some(loaded) = loads.next().await {
                match loaded {
                    Ok(_) => warmed.loaded += 1,
                    Err(error) => {
                        tracing::warn!(region = region.name(), %error, "a value was not warmed");
                        warmed.failed += 1;
                    }
                }
                if let Some(progress) = &mut self.progress {
                    progress(warmed);
                }
            }
        }
        warmed
    }

    fn report(&mut self, warmed: Warmed) {
        if let Some(progress) = &mut self.progress {
            progress(warmed);
        }
    }
}
