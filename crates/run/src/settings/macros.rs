//! The macro that derives everything from the declaration of the settings.

/// A declaration is, under a heading of the help text,
///
/// ```text
/// /// Its description.
/// #[arg(attributes of clap, besides `long`)]
/// #[serde(aliases: keys of earlier versions)]
/// key: Type = "default, as typed" [properties];
/// ```
///
/// Without a default, a setting of type `Option<T>` may be absent; any other must come from a layer.
macro_rules! settings {
    ($(
        $heading:literal {
            $(
                $(#[doc = $doc:literal])+
                $(#[arg($($arg:tt)+)])?
                $(#[serde($($serde:tt)+)])?
                $key:ident: $outer:ident $(<$inner:ty>)? $(= $default:literal)? [$($property:ident),*];
            )+
        }
    )+) => {
        /// Settings of which each may be missing: one layer (a recipe, a file, the command line).
        #[derive(Clone, Debug, Default, PartialEq, clap::Args, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Overrides {
            $($(
                $(#[doc = $doc])+
                #[arg(long, help_heading = $heading, allow_negative_numbers = true $(, $($arg)+)?)]
                #[serde(skip_serializing_if = "Option::is_none" $(, $($serde)+)?)]
                pub $key: Option<$crate::settings::macros::present!($outer $(<$inner>)?)>,
            )+)+
            /// What a run's record has besides its settings.
            #[arg(skip)]
            #[serde(skip_serializing)]
            pub made_by: Option<toml::Table>,
        }

        /// All settings of a run, resolved.
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct Settings {
            $($(
                $(#[doc = $doc])+
                pub $key: $outer $(<$inner>)?,
            )+)+
        }

        /// All settings, in the order of the record.
        pub const FIELDS: &[Field] = &[
            $($(
                Field {
                    key: stringify!($key),
                    default: $crate::settings::macros::default_text!($($default)?),
                    properties: &[$(Property::$property),*],
                },
            )+)+
        ];

        impl Settings {
            /// The settings of these layers; a later layer overrides an earlier one.
            ///
            /// # Errors
            /// When a setting that has no default is missing.
            pub fn resolve(layers: &[Layer]) -> Result<Self, Error> {
                Ok(Self {
                    $($(
                        $key: $crate::settings::macros::resolve!(
                            $outer,
                            stringify!($key),
                            last(layers, |overrides| overrides.$key.clone()).map(|(_, value)| value)
                            $(, $default)?
                        ),
                    )+)+
                })
            }
        }

    };
}

/// The type of a setting that is present.
macro_rules! present {
    (Option<$inner:ty>) => { $inner };
    ($outer:ident $(<$inner:ty>)?) => { $outer $(<$inner>)? };
}

/// `Option` of a default's text.
macro_rules! default_text {
    () => {
        None
    };
    ($default:literal) => {
        Some($default)
    };
}

/// A setting of the layers' value, or else its default.
macro_rules! resolve {
    (Option, $key:expr, $value:expr) => {
        $value
    };
    ($outer:ident, $key:expr, $value:expr) => {
        $value.ok_or(Error::Missing { key: $key })?
    };
    ($outer:ident, $key:expr, $value:expr, $default:literal) => {
        match $value {
            Some(value) => value,
            None => $default.parse().map_err(|_| Error::Missing { key: $key })?,
        }
    };
}

pub(super) use {default_text, present, resolve, settings};
