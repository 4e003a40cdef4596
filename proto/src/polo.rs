//! The one rule by which reputation moves.
