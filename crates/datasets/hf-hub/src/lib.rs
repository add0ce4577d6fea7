//! The names of the crate `hf-hub` that `candle-datasets` uses, without the client: a test of `datasets` calls its reader of
//! local files alone. No client can be made, so there are no values of the types below but errors.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

/// The client.
pub struct HFClientSync(Infallible);

/// A repository.
pub struct HFRepositorySync<Type>(Infallible, PhantomData<Type>);

/// The type of a repository: a data set.
pub struct RepoTypeDataset;

/// A request for a file of a repository, or for what it contains.
#[derive(Clone)]
pub struct Request<Reply>(Infallible, PhantomData<Reply>);

/// What a repository contains.
pub struct RepositoryInfo {
    /// Its files.
    pub siblings: Option<Vec<RepoSibling>>,
}

/// A file of a repository.
pub struct RepoSibling {
    /// Its path in the repository.
    pub rfilename: String,
}

/// Errors.
#[derive(Debug)]
pub enum HFError {
    /// This crate is not the client.
    NoClient,
    /// The file is not in the cache.
    LocalEntryNotFound {},
}

impl fmt::Display for HFError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this build has no client for the Hugging Face Hub")
    }
}

impl std::error::Error for HFError {}

/// The owner and the name in `OWNER/NAME`.
pub fn split_id(id: &str) -> (&str, &str) {
    id.split_once('/').unwrap_or(("", id))
}

impl HFClientSync {
    /// Fails.
    pub fn new() -> Result<Self, HFError> {
        Err(HFError::NoClient)
    }

    /// The repository of a data set.
    pub fn dataset(&self, _: &str, _: &str) -> HFRepositorySync<RepoTypeDataset> {
        match self.0 {}
    }
}

impl<Type> HFRepositorySync<Type> {
    /// A request for a file.
    pub fn download_file(&self) -> Request<PathBuf> {
        match self.0 {}
    }

    /// A request for what it contains.
    pub fn info(&self) -> Request<RepositoryInfo> {
        match self.0 {}
    }
}

impl<Reply> Request<Reply> {
    /// Of this file.
    pub fn filename(self, _: &str) -> Self {
        self
    }

    /// Of this revision.
    pub fn revision(self, _: &str) -> Self {
        self
    }

    /// From the cache alone.
    pub fn local_files_only(self, _: bool) -> Self {
        self
    }

    /// Sends the request.
    pub fn send(self) -> Result<Reply, HFError> {
        match self.0 {}
    }
}
