//! How dangerous an action is where it is done: the tier table of `docs/tiers.md`. Pure.

use crate::lease::{ActionClass, Environment, Tier};

/// How a scope names an action and what it does it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Spelled out, rather than by a wildcard.
    pub literal: bool,
    /// On ARNs without wildcards only, and on at least one.
    pub exact: bool,
    /// `iam:PassRole`, and the scope says to which services.
    pub passes_role: bool,
}

/// The tier of an action of `class` in `environment`. `None` cannot be leased.
pub fn tier_of(class: ActionClass, environment: Environment, naming: Naming) -> Option<Tier> {
    use ActionClass as C;
    use Environment as E;
    use Tier as T;
    let Naming { literal, exact, passes_role } = naming;
    Some(match (class, environment) {
        (C::Read, _) | (C::DataRead, E::Development | E::Staging) => T::ReadOnly,
        (C::DataRead, E::Production) if literal && exact => T::ReadOnly,
        (C::DataRead, E::Production | E::Backup) => T::ProductionWrite,

        (C::Write | C::Tag, E::Development | E::Staging) => T::StagingWrite,
        (C::Review | C::Destructive, E::Development | E::Staging) if literal => T::StagingWrite,
        (C::Write | C::Tag | C::Review, E::Production) => T::ProductionWrite,
        (C::Destructive, E::Production) => T::Destructive,
        (C::Write | C::Tag | C::Review | C::Destructive, E::Backup) => T::Destructive,

        (C::OpaqueExec | C::Tamper | C::Credential, E::Development | E::Staging)
            if literal && exact =>
        {
            T::StagingSensitive
        }
        (C::OpaqueExec | C::Tamper | C::Credential, E::Production) if literal => T::Destructive,
        (C::Tamper, E::Backup) if literal => T::Destructive,

        (C::Privesc, E::Development | E::Staging) if literal && exact && passes_role => {
            T::StagingSensitive
        }
        (C::Privesc, E::Production) if literal && exact && passes_role => T::Destructive,

        (
            C::Review | C::Destructive | C::OpaqueExec | C::Tamper | C::Credential | C::Privesc,
            _,
        ) => return None,
    })
}

/// What would make an action of `class` leasable in `environment`, if anything does.
pub fn remedy(class: ActionClass, environment: Environment) -> &'static str {
    use ActionClass as C;
    use Environment as E;
    match (class, environment) {
        (C::Review | C::Destructive, _) => "name it literally, without a wildcard",
        (C::OpaqueExec | C::Tamper | C::Credential, E::Development | E::Staging) => {
            "name it literally, in a scope whose ARNs for it have no wildcards"
        }
        (C::OpaqueExec | C::Credential, E::Backup) => "no scope may have it there",
        (C::OpaqueExec | C::Tamper | C::Credential, _) => "name it literally, without a wildcard",
        _ => "no scope may have it",
    }
}

/// Whether whoever classes an action `new` instead of `old` demands at least as much everywhere.
pub fn at_least_as_strict(new: ActionClass, old: ActionClass) -> bool {
    let strictness = |class, environment, naming| match tier_of(class, environment, naming) {
        None => (1, None),
        tier => (0, tier),
    };
    let flags = [false, true];
    Environment::ALL.iter().all(|environment| {
        flags.iter().all(|literal| {
            flags.iter().all(|exact| {
                let naming = Naming { literal: *literal, exact: *exact, passes_role: false };
                strictness(old, *environment, naming) <= strictness(new, *environment, naming)
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Staging, production and backup for an action named by a wildcard, literally, and literally on exact ARNs.
    fn row(class: ActionClass) -> [[&'static str; 3]; 3] {
        [(false, false), (true, false), (true, true)].map(|(literal, exact)| {
            let naming = Naming { literal, exact, passes_role: false };
            [Environment::Staging, Environment::Production, Environment::Backup]
                .map(|it| tier_of(class, it, naming).map_or("-", Tier::as_str))
        })
    }

    #[test]
    fn every_cell_of_the_tier_table_is_as_documented() {
        use ActionClass as C;
        assert_eq!(row(C::Read), [["read-only"; 3]; 3]);
        let signed = ["read-only", "production-write", "production-write"];
        let exact = ["read-only", "read-only", "production-write"];
        assert_eq!(row(C::DataRead), [signed, signed, exact]);
        for class in [C::Write, C::Tag] {
            assert_eq!(row(class), [["staging-write", "production-write", "destructive"]; 3]);
        }
        let (review, named) = (
            ["-", "production-write", "destructive"],
            ["staging-write", "production-write", "destructive"],
        );
        assert_eq!(row(C::Review), [review, named, named]);
        let (destroys, named) =
            (["-", "destructive", "destructive"], ["staging-write", "destructive", "destructive"]);
        assert_eq!(row(C::Destructive), [destroys, named, named]);
        for class in [C::OpaqueExec, C::Credential] {
            let exact = ["staging-sensitive", "destructive", "-"];
            assert_eq!(row(class), [["-"; 3], ["-", "destructive", "-"], exact]);
        }
        let exact = ["staging-sensitive", "destructive", "destructive"];
        assert_eq!(row(C::Tamper), [["-"; 3], ["-", "destructive", "destructive"], exact]);
        assert_eq!(row(C::Privesc), [["-"; 3]; 3]);
    }

    #[test]
    fn a_role_is_passed_only_literally_to_named_services_and_never_in_backup() {
        let tier = |environment, literal, exact| {
            let naming = Naming { literal, exact, passes_role: true };
            tier_of(ActionClass::Privesc, environment, naming)
        };
        assert_eq!(tier(Environment::Staging, true, true), Some(Tier::StagingSensitive));
        assert_eq!(tier(Environment::Production, true, true), Some(Tier::Destructive));
        assert_eq!(tier(Environment::Backup, true, true), None);
        for environment in Environment::ALL {
            assert_eq!(tier(*environment, true, false), None);
            assert_eq!(tier(*environment, false, true), None);
        }
    }

    #[test]
    fn development_is_as_staging() {
        for class in ActionClass::ALL {
            for (literal, exact) in [(false, false), (true, false), (false, true), (true, true)] {
                let naming = Naming { literal, exact, passes_role: false };
                assert_eq!(
                    tier_of(*class, Environment::Development, naming),
                    tier_of(*class, Environment::Staging, naming)
                );
            }
        }
    }

    #[test]
    fn a_stricter_environment_never_means_a_lower_tier() {
        for class in ActionClass::ALL {
            for (literal, exact) in [(false, false), (true, false), (false, true), (true, true)] {
                let naming = Naming { literal, exact, passes_role: false };
                let tiers: Vec<_> =
                    Environment::ALL.iter().map(|it| tier_of(*class, *it, naming)).collect();
                for pair in tiers.windows(2) {
                    // Not leasable in staging and signed for in production is how the table wants it.
                    if let (Some(lower), Some(higher)) = (pair[0], pair[1]) {
                        assert!(lower <= higher, "{class}: {pair:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn strictness_follows_from_the_table() {
        use ActionClass as C;
        assert!(at_least_as_strict(C::Destructive, C::Review));
        assert!(at_least_as_strict(C::Tamper, C::Destructive));
        assert!(at_least_as_strict(C::DataRead, C::Read));
        assert!(at_least_as_strict(C::Privesc, C::Credential));
        assert!(at_least_as_strict(C::Write, C::Write));
        assert!(!at_least_as_strict(C::Read, C::DataRead));
        assert!(!at_least_as_strict(C::Review, C::Destructive));
        // Backups may be tampered with by signature, but secrets there are nobody's.
        assert!(!at_least_as_strict(C::Tamper, C::Credential));
    }
}
