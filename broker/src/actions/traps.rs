//! Where a table of action classes goes wrong, one test for each way. See `docs/actions.md`.

use std::collections::BTreeSet;

use super::{Action, all, find, matching};
use crate::arn::Arn;
use crate::lease::ActionClass as Class;

fn action(name: &str) -> &'static Action {
    let action = find(name).unwrap_or_else(|| panic!("there is no action {name}"));
    assert_eq!(action.name, name, "AWS spells it otherwise");
    action
}

fn class(name: &str) -> Class {
    action(name).class
}

fn only_reads(action: &Action) -> bool {
    matches!(action.level, "Read" | "List")
}

/// Whether the name, without its service and without `Batch`, begins with one of these words.
fn begins_with(action: &Action, words: &str) -> bool {
    let (_, name) = action.name.split_once(':').unwrap();
    let name = name.strip_prefix("Batch").unwrap_or(name);
    words.split_whitespace().any(|word| {
        name.strip_prefix(word)
            .is_some_and(|rest| !rest.starts_with(|it: char| it.is_ascii_lowercase()))
    })
}

#[track_caller]
fn each_is(wanted: Class, names: &str) {
    for name in names.split_whitespace() {
        assert_eq!(class(name), wanted, "{name}");
    }
}

#[track_caller]
fn each_is_at_least(floor: Class, names: &str) {
    for name in names.split_whitespace() {
        assert!(class(name) >= floor, "{name} is {}", class(name));
    }
}

/// Every action that matches one of these, of those that change something; tags aside.
fn changing(patterns: &str) -> Vec<&'static Action> {
    patterns
        .split_whitespace()
        .flat_map(|pattern| {
            let found: Vec<_> = matching(pattern)
                .filter(|it| !only_reads(it) && !it.level.starts_with("Tagging"))
                .collect();
            assert!(!found.is_empty(), "nothing is {pattern}");
            found
        })
        .collect()
}

/// Fails with the actions that are `wrong`, but for those that are expected; and with those expected in vain.
#[track_caller]
fn only_these(expected: &str, wrong: impl Iterator<Item = &'static Action>) {
    let wrong: BTreeSet<_> = wrong.map(|it| it.name).collect();
    let expected: BTreeSet<_> = expected.split_whitespace().collect();
    let unexpected: Vec<_> = wrong.difference(&expected).collect();
    let in_vain: Vec<_> = expected.difference(&wrong).collect();
    assert!(unexpected.is_empty() && in_vain.is_empty(), "{unexpected:?}; in vain: {in_vain:?}");
}

#[test]
fn every_class_and_every_level_occurs_and_no_other_level() {
    const LEVELS: [&str; 5] =
        ["List", "Permissions management, Write", "Read", "Tagging, Write", "Write"];
    let levels: BTreeSet<_> = all().map(|it| it.level).collect();
    assert_eq!(levels.into_iter().collect::<Vec<_>>(), LEVELS);
    let classes: BTreeSet<_> = all().map(|it| it.class).collect();
    assert_eq!(classes.into_iter().collect::<Vec<_>>(), Class::ALL);
}

#[test]
fn a_level_of_write_is_no_read_unless_it_is_listed_here() {
    let listed = "
        arc-region-switch:GetResourcePolicy billing:GetResourcePolicy fsx:GetResourcePolicy
        quicksight:DescribeKnowledgeBasePermissions quicksight:DescribeSpacePermissions
        quicksight:DescribeTopicPermissions secretsmanager:ValidateResourcePolicy
        ssm-sap:GetResourcePermission sts:DecodeAuthorizationMessage
    ";
    only_these(listed, all().filter(|it| !only_reads(it) && it.class == Class::Read));
}

#[test]
fn a_write_that_gives_data_in_clear_reads_data() {
    let names = "
        kms:Decrypt kms:DeriveSharedSecret kms:GenerateDataKey kms:GenerateDataKeyPair kms:ReEncryptFrom
        payment-cryptography:DecryptData
    ";
    each_is(Class::DataRead, names);
}

#[test]
fn what_customers_store_is_no_configuration() {
    let names = "
        appconfig:GetLatestConfiguration athena:GetQueryResults cloudtrail:LookupEvents
        codecommit:GitPull dynamodb:BatchGetItem dynamodb:GetItem dynamodb:PartiQLSelect dynamodb:Query
        dynamodb:Scan ebs:GetSnapshotBlock ecr:GetDownloadUrlForLayer kinesis:GetRecords
        lambda:GetFunction logs:FilterLogEvents logs:GetLogEvents logs:GetQueryResults logs:StartQuery
        neptune-db:ReadDataViaQuery rds:DownloadDBLogFilePortion redshift-data:GetStatementResult
        s3:GetObject s3:GetObjectVersion sqs:ReceiveMessage ssm:GetCommandInvocation
        states:GetExecutionHistory xray:BatchGetTraces
    ";
    each_is(Class::DataRead, names);
}

#[test]
fn a_reading_level_under_which_something_acts_is_no_read() {
    const ACTS: &str = "
        Accept Allow Approve Assume Authorize Call Cancel Chat Complete Connect Create Delete Deliver
        Execute Generate Invoke Pass Put Register Request Run Send Start Stop Update Use
    ";
    let reads_all_the_same = "
        application-signals-mcp:CallReadOnlyTool ecs-mcp:InvokeReadOnlyTools eks-mcp:CallReadOnlyTool
        iam:GenerateCredentialReport iam:GenerateOrganizationsAccessReport
        iam:GenerateServiceLastAccessedDetails iotsitewise:ExecuteQuery iottwinmaker:ExecuteQuery
        logs:StartLiveTail logs:StartQuery logs:StopQuery
    ";
    only_these(
        reads_all_the_same,
        all().filter(|it| only_reads(it) && begins_with(it, ACTS) && it.class <= Class::DataRead),
    );
    let names = "
        bedrock:InvokeAgent bedrock:InvokeModel eks:AccessKubernetesApi sagemaker:InvokeEndpoint
    ";
    each_is(Class::OpaqueExec, names);
}

#[test]
fn what_hands_out_secrets_is_a_credential() {
    let names = "
        acm-pca:IssueCertificate acm:ExportCertificate apigateway:GET appsync:ListApiKeys
        athena:GetSession bedrock-agentcore:GetResourceApiKey bedrock-agentcore:GetResourceOauth2Token
        cloud9:CreateEnvironmentToken codeartifact:GetAuthorizationToken
        codeconnections:GetConnectionToken cognito-identity:GetCredentialsForIdentity
        cognito-idp:DescribeUserPoolClient cognito-idp:GetUserAttributeVerificationCode
        connect:GetFederationToken datazone:GetEnvironmentCredentials ec2:CreateKeyPair
        ec2:GetPasswordData ecr:GetAuthorizationToken eks-auth:AssumeRoleForPodIdentity
        emr-serverless:GetSessionEndpoint gamelift:GetComputeAccess geo:DescribeKey glue:GetConnection
        iam:GetCredentialReport iot:CreateKeysAndCertificate kms:Sign
        lakeformation:GetTemporaryGlueTableCredentials license-manager:GetAccessToken
        lightsail:GetBucketAccessKeys lightsail:GetRelationalDatabaseMasterUserPassword
        pca-connector-scep:GetChallengePassword redshift:GetClusterCredentials
        redshift:GetClusterCredentialsWithIAM redshift:GetIdentityCenterAuthToken
        route53globalresolver:GetAccessToken s3:GetDataAccess
        sagemaker:CreatePresignedNotebookInstanceUrl secretsmanager:BatchGetSecretValue
        secretsmanager:GetSecretValue signin:CreateOAuth2Token snowball:GetJobUnlockCode ssm:ExecuteAPI
        ssm:GetAccessToken ssm:GetParameter ssm:GetParameterHistory ssm:GetParameters
        ssm:GetParametersByPath states:RevealSecrets storagegateway:DescribeChapCredentials
        sts:GetFederationToken sts:GetServiceBearerToken sts:GetSessionToken wafv2:GetDecryptedAPIKey
    ";
    each_is(Class::Credential, names);
}

#[test]
fn what_only_sounds_like_a_secret_stays_readable() {
    let names = "
        ec2:DescribeKeyPairs iam:GetAccountPasswordPolicy iam:ListAccessKeys kms:DescribeKey
        kms:GetPublicKey secretsmanager:DescribeSecret secretsmanager:ListSecrets ssm:DescribeParameters
        sts:GetCallerIdentity
    ";
    each_is(Class::Read, names);
}

#[test]
fn statements_commands_and_code_are_opaque_to_iam() {
    let names = "
        aoss:APIAccessAll athena:StartQueryExecution batch:SubmitJob
        bedrock-agentcore:InvokeCodeInterpreter cloudformation:CreateStack
        cloudformation:ExecuteChangeSet cloudformation:UpdateStack codebuild:StartBuild dsql:DbConnect
        dsql:DbConnectAdmin ec2-instance-connect:SendSSHPublicKey ec2:ModifyInstanceAttribute
        ec2:RunInstances ecs:ExecuteCommand ecs:RunTask elasticache:Connect es:ESHttpPost
        events:PutTargets execute-api:Invoke glue:StartJobRun lambda:InvokeFunction
        lambda:UpdateFunctionCode lambda:UpdateFunctionConfiguration neptune-db:connect rds-db:connect
        s3:CreateJob s3express:CreateSession scheduler:CreateSchedule ssm:SendCommand
        ssm:StartAutomationExecution ssm:StartSession states:StartExecution
    ";
    each_is(Class::OpaqueExec, names);
    for action in matching("rds-data:*Execute*").chain(matching("redshift-data:*Execute*")) {
        assert_eq!(action.class, Class::OpaqueExec, "{}", action.name);
    }
}

#[test]
fn what_runs_something_by_its_name_is_opaque_unless_it_is_listed_here() {
    let only_queries = "
        application-signals-mcp:CallReadOnlyTool ecs-mcp:InvokeReadOnlyTools eks-mcp:CallReadOnlyTool
        iotsitewise:ExecuteQuery iottwinmaker:ExecuteQuery
    ";
    let runs = all().filter(|it| begins_with(it, "Execute Invoke Run Call"));
    only_these(only_queries, runs.filter(|it| it.class < Class::OpaqueExec));
}

#[test]
fn what_destroys_without_saying_so_is_at_least_review() {
    let names = "
        autoscaling:SetDesiredCapacity datasync:StartTaskExecution dynamodb:PutItem dynamodb:UpdateItem
        dynamodb:UpdateTable ec2:StopInstances elasticache:ModifyReplicationGroup
        lambda:PutFunctionConcurrency rds:ModifyDBCluster rds:ModifyDBInstance
        route53:ChangeResourceRecordSets s3:PutObject sqs:SetQueueAttributes ssm:PutParameter
    ";
    each_is_at_least(Class::Review, names);
    let names = "
        cassandra:Drop dynamodb:BatchWriteItem dynamodb:PartiQLDelete neptune-db:DeleteDataViaQuery
        s3:AbortMultipartUpload s3:ReplicateDelete sqs:PurgeQueue apigateway:DELETE es:ESHttpDelete
    ";
    each_is_at_least(Class::Destructive, names);
}

#[test]
fn what_destroys_by_its_name_is_destructive_or_stricter() {
    const DESTROYS: &str = "
        Abort Delete Deregister Destroy Drop Erase Expire Flush Forget Purge Release Remove Revoke
        Terminate Truncate Wipe
    ";
    only_these(
        "",
        all().filter(|it| {
            begins_with(it, DESTROYS) && it.class < Class::Destructive && it.class != Class::Tag
        }),
    );
}

#[test]
fn what_interrupts_or_overwrites_by_its_name_is_at_least_review() {
    const INTERRUPTS: &str = "
        Archive Cancel Deactivate Detach Disable Disassociate Failover Overwrite Put Reboot Reject
        Replace Reset Restore Rollback Stop Suspend
    ";
    let harmless = "
        cloudwatch:PutMetricData firehose:PutRecord firehose:PutRecordBatch kinesis:PutRecord
        kinesis:PutRecords kms:CancelKeyDeletion logs:PutLogEvents logs:StopQuery s3:RestoreObject
        secretsmanager:RestoreSecret xray:PutTelemetryRecords xray:PutTraceSegments
    ";
    only_these(
        harmless,
        all().filter(|it| {
            begins_with(it, INTERRUPTS) && it.class < Class::Review && it.class != Class::Tag
        }),
    );
}

#[test]
fn a_first_word_that_is_rare_is_at_least_review() {
    let names = "
        appsync:EvaluateCode ec2:BundleInstance elasticache:InterruptClusterAzPower
        elasticbeanstalk:SwapEnvironmentCNAMEs kms:ReplicateKey rds:BacktrackDBCluster
        rds:SwitchoverReadReplica
    ";
    each_is_at_least(Class::Review, names);
}

#[test]
fn recovery_points_are_guarded() {
    let patterns = "
        *:Delete*Backup* *:Delete*RecoveryPoint* *:Delete*Snapshot* backup:Delete* backup:Disassociate*
        backup:Put* backup:Update* dlm:*LifecyclePolicy rbin:*Rule redshift:BatchDeleteClusterSnapshots
    ";
    let guarded = [Class::Destructive, Class::Tamper, Class::Privesc];
    only_these("", changing(patterns).into_iter().filter(|it| !guarded.contains(&it.class)));
    let names = "
        backup:DeleteRecoveryPoint backup:PutBackupVaultLockConfiguration
        backup:UpdateRecoveryPointLifecycle dynamodb:DeleteBackup dynamodb:UpdateContinuousBackups
        ec2:DeleteSnapshot ec2:DeregisterImage elasticfilesystem:PutBackupPolicy fsx:DeleteBackup
        rds:DeleteDBClusterSnapshot rds:DeleteDBInstanceAutomatedBackup rds:DeleteDBSnapshot
        redshift:DeleteClusterSnapshot
    ";
    each_is(Class::Tamper, names);
    each_is(Class::Destructive, "glacier:DeleteArchive s3:DeleteObjectVersion");
}

#[test]
fn retention_expiry_and_locks_are_guarded() {
    let names = "
        dynamodb:UpdateTimeToLive ecr:PutLifecyclePolicy fsx:BypassSnaplockEnterpriseRetention
        glacier:CompleteVaultLock kinesis:DecreaseStreamRetentionPeriod logs:PutRetentionPolicy
        redshift:ModifySnapshotCopyRetentionPeriod s3:BypassGovernanceRetention
        s3:PutBucketObjectLockConfiguration s3:PutBucketVersioning s3:PutLifecycleConfiguration
        s3:PutObjectLegalHold s3:PutObjectRetention s3:PutReplicationConfiguration
    ";
    each_is(Class::Tamper, names);
}

#[test]
fn audit_and_detection_are_guarded() {
    let patterns = "
        access-analyzer:Delete* cloudtrail:Delete* cloudtrail:Put* cloudtrail:Stop* cloudtrail:Update*
        config:Delete* config:Stop* guardduty:* inspector2:Disable* logs:Delete* macie2:Disable*
        securityhub:*
    ";
    only_these("", changing(patterns).into_iter().filter(|it| it.class < Class::Tamper));
    each_is(Class::Tamper, "ec2:DeleteFlowLogs s3:PutBucketLogging cloudwatch:DeleteAlarms");
}

#[test]
fn keys_and_secrets_are_guarded() {
    let names = "
        acm-pca:DeleteCertificateAuthority kms:DeleteImportedKeyMaterial kms:DisableKey kms:RetireGrant
        kms:RevokeGrant kms:ScheduleKeyDeletion secretsmanager:DeleteSecret
        secretsmanager:PutSecretValue secretsmanager:UpdateSecret
    ";
    each_is(Class::Tamper, names);
    each_is(Class::Privesc, "kms:CreateGrant kms:PutKeyPolicy");
}

#[test]
fn whoever_decides_who_may_do_what_is_never_leased() {
    let services = "
        account cognito-identity controltower iam identitystore organizations ram rolesanywhere signin
        sso sso-directory verifiedpermissions
    ";
    for service in services.split_whitespace() {
        let pattern = format!("{service}:*");
        let mut changes = matching(&pattern).filter(|it| !only_reads(it)).peekable();
        assert!(changes.peek().is_some(), "{service}");
        for action in changes {
            assert_eq!(action.class, Class::Privesc, "{}", action.name);
        }
    }
    for action in matching("sts:AssumeRole*").chain(matching("sts:AssumeRoot")) {
        assert_eq!(action.class, Class::Privesc, "{}", action.name);
    }
}

#[test]
fn permissions_are_widened_in_many_places() {
    let policies = "
        *:Put*ResourcePolicy *:Put*BucketPolicy *:Put*KeyPolicy *:Add*Permission *:Put*Acl
    ";
    only_these("", changing(policies).into_iter().filter(|it| it.class != Class::Privesc));
    let names = "
        cognito-idp:AdminAddUserToGroup ec2:AssociateIamInstanceProfile
        ec2:AuthorizeSecurityGroupIngress ec2:ModifyImageAttribute ec2:ModifySnapshotAttribute
        eks:AssociateAccessPolicy eks:CreateAccessEntry es:UpdateDomainConfig iam:PassRole iam:TagRole
        lakeformation:GrantPermissions lambda:AddPermission rds:ModifyDBSnapshotAttribute
        redshift:AuthorizeSnapshotAccess s3:DeleteBucketPolicy s3:PutBucketPolicy sns:SetTopicAttributes
        sqs:SetQueueAttributes ssm:ModifyDocumentPermission
    ";
    each_is(Class::Privesc, names);
}

#[test]
fn what_aws_calls_managing_permissions_is_privesc_but_for_few_that_are_named() {
    let other: Vec<_> = all()
        .filter(|it| it.level.starts_with("Permissions") && it.class != Class::Privesc)
        .collect();
    assert!(other.len() < 70, "{} of them; each is named in curated.toml", other.len());
    let mild = other.iter().filter(|it| it.class == Class::Write || it.class == Class::Tag);
    assert_eq!(
        mild.map(|it| it.name).collect::<Vec<_>>(),
        ["waf:CreateWebACL", "waf-regional:CreateWebACL"]
    );
}

#[test]
fn a_wildcard_is_as_dangerous_as_the_worst_that_it_stands_for() {
    let worst = |pattern: &str| matching(pattern).map(|it| it.class).max();
    assert_eq!(worst("s3:Get*"), Some(Class::Credential));
    assert_eq!(worst("s3:GetObject*"), Some(Class::DataRead));
    assert_eq!(worst("ec2:Describe*"), Some(Class::DataRead));
    assert_eq!(worst("ssm:Get*"), Some(Class::Credential));
    assert_eq!(worst("iam:*"), Some(Class::Privesc));
    assert_eq!(worst("*"), Some(Class::Privesc));
}

#[test]
fn s3_is_classed_as_it_was_reviewed() {
    let reviewed = [
        (
            Class::Read,
            "GetBucketLocation GetBucketObjectLockConfiguration GetBucketPolicyStatus GetBucketPublicAccessBlock",
        ),
        (
            Class::Read,
            "GetBucketTagging GetBucketVersioning GetEncryptionConfiguration GetLifecycleConfiguration",
        ),
        (
            Class::Read,
            "ListBucket ListBucketMultipartUploads ListBucketVersions ListMultipartUploadParts",
        ),
        (
            Class::DataRead,
            "GetObject GetObjectAttributes GetObjectTagging GetObjectVersion GetObjectVersionAttributes",
        ),
        (Class::DataRead, "GetObjectVersionTagging"),
        (Class::Write, "RestoreObject"),
        (
            Class::Tag,
            "DeleteObjectTagging DeleteObjectVersionTagging PutObjectTagging PutObjectVersionTagging",
        ),
        (Class::Review, "PutObject"),
        (Class::Destructive, "AbortMultipartUpload DeleteBucket DeleteObject DeleteObjectVersion"),
        (
            Class::Tamper,
            "BypassGovernanceRetention PutBucketLogging PutBucketObjectLockConfiguration",
        ),
        (Class::Tamper, "PutBucketPublicAccessBlock PutBucketVersioning PutLifecycleConfiguration"),
        (Class::Tamper, "PutObjectLegalHold PutObjectRetention PutReplicationConfiguration"),
        (
            Class::Privesc,
            "DeleteBucketPolicy ObjectOwnerOverrideToBucketOwner PutBucketAcl PutBucketOwnershipControls",
        ),
        (Class::Privesc, "PutBucketPolicy PutObjectAcl PutObjectVersionAcl"),
    ];
    for (wanted, names) in reviewed {
        for name in names.split(' ') {
            assert_eq!(class(&format!("s3:{name}")), wanted, "s3:{name}");
        }
    }
}

#[test]
fn an_action_fits_what_iam_matches_it_with_and_not_its_neighbour() {
    let cases = [
        ("s3:ListBucket", true, "arn:aws:s3:::bucket"),
        ("s3:ListBucket", false, "arn:aws:s3:::bucket/*"),
        ("s3:ListBucket", false, "arn:aws:s3:::bucket/key"),
        ("s3:GetObject", true, "arn:aws:s3:::bucket/a/b:c"),
        ("s3:GetObject", false, "arn:aws:s3:::bucket"),
        ("s3:GetObject", true, "arn:aws:s3:::*"),
        ("s3:DeleteBucket", false, "arn:aws:s3:::bucket/*"),
        ("dynamodb:DeleteTable", true, "arn:aws:dynamodb:us-east-1:111122223333:table/t"),
        ("dynamodb:DeleteTable", false, "arn:aws:dynamodb:us-east-1:111122223333:table/t/index/i"),
        ("dynamodb:Query", true, "arn:aws:dynamodb:us-east-1:111122223333:table/t/index/i"),
        ("dynamodb:DeleteBackup", true, "arn:aws:dynamodb:us-east-1:111122223333:table/t/backup/b"),
        ("lambda:InvokeFunction", true, "arn:aws:lambda:us-east-1:111122223333:function:f"),
        ("lambda:InvokeFunction", true, "arn:aws:lambda:us-east-1:111122223333:function:f:live"),
        ("lambda:InvokeFunction", true, "arn:aws:lambda:us-east-1:111122223333:function:f:*"),
        (
            "lambda:UpdateFunctionCode",
            false,
            "arn:aws:lambda:us-east-1:111122223333:function:f:live",
        ),
        (
            "logs:FilterLogEvents",
            true,
            "arn:aws:logs:us-east-1:111122223333:log-group:/aws/lambda/f",
        ),
        (
            "logs:FilterLogEvents",
            true,
            "arn:aws:logs:us-east-1:111122223333:log-group:/aws/lambda/f:*",
        ),
        ("logs:DeleteLogGroup", true, "arn:aws:logs:us-east-1:111122223333:log-group:g:*"),
        ("logs:PutLogEvents", true, "arn:aws:logs:us-east-1:111122223333:log-group:g:log-stream:s"),
        ("logs:PutLogEvents", false, "arn:aws:logs:us-east-1:111122223333:log-group:g"),
        ("events:PutRule", true, "arn:aws:events:us-east-1:111122223333:rule/bus/r"),
        ("ec2:TerminateInstances", false, "arn:aws:ec2:us-east-1:111122223333:volume/vol-1"),
        ("ec2:DeleteSnapshot", true, "arn:aws:ec2:us-east-1::snapshot/snap-1"),
        ("iam:PassRole", true, "arn:aws:iam::111122223333:role/path/to/r"),
        ("iam:PassRole", false, "arn:aws:iam::111122223333:user/u"),
        ("kms:Decrypt", true, "arn:aws:kms:us-east-1:111122223333:key/k"),
        ("kms:Decrypt", false, "arn:aws:kms:us-east-1:111122223333:alias/a"),
        ("ssm:GetParameter", true, "arn:aws:ssm:us-east-1:111122223333:parameter/a/b/c"),
        ("sqs:SendMessage", false, "arn:aws:sns:us-east-1:111122223333:t"),
        (
            "states:StartExecution",
            true,
            "arn:aws:states:us-east-1:111122223333:stateMachine:m:live",
        ),
        ("backup:DeleteRecoveryPoint", true, "arn:aws:ec2:us-east-1::snapshot/snap-1"),
        (
            "backup:DeleteRecoveryPoint",
            true,
            "arn:aws:backup:us-east-1:111122223333:recovery-point:1-2",
        ),
        ("ecs:UpdateService", true, "arn:aws:ecs:us-east-1:111122223333:service/c/s"),
        ("apigateway:GET", true, "arn:aws:apigateway:us-east-1::/apis/a/routes/r"),
        ("apigateway:GET", true, "arn:aws:apigateway:us-east-1::/restapis/a"),
        (
            "greengrass:GetDeployment",
            true,
            "arn:aws:greengrass:us-east-1:111122223333:deployments:d",
        ),
    ];
    for (name, fits, arn) in cases {
        assert_eq!(action(name).fits(&Arn::parse(arn).unwrap()), fits, "{name} on {arn}");
    }
}

#[test]
fn what_lists_or_describes_everything_takes_no_arn() {
    for name in [
        "s3:ListAllMyBuckets",
        "ec2:DescribeInstances",
        "ecr:GetAuthorizationToken",
        "sts:GetCallerIdentity",
    ] {
        assert!(!action(name).takes_resources(), "{name}");
    }
    for name in ["s3:ListBucket", "ec2:RunInstances", "iam:PassRole"] {
        assert!(action(name).takes_resources(), "{name}");
    }
}

#[test]
fn the_account_is_demanded_only_where_aws_tells_it() {
    let untold = "
        ebs:GetSnapshotBlock ec2:AcceptVpcPeeringConnection ec2:CopySnapshot ec2:CreateVpcEndpoint
        events:PutEvents guardduty:AcceptAdministratorInvitation route53:AssociateVPCWithHostedZone
        ec2:RunInstances iam:GetPolicyVersion ssm:GetParameter ssm:SendCommand
    ";
    for name in untold.split_whitespace() {
        assert!(!action(name).resource_account, "{name}");
    }
    for name in [
        "s3:GetObject",
        "dynamodb:PutItem",
        "ec2:TerminateInstances",
        "kms:Decrypt",
        "route53:GetHostedZone",
    ] {
        assert!(action(name).resource_account, "{name}");
    }
}

#[test]
fn only_global_services_and_actions_are_free_of_the_region() {
    for name in [
        "iam:GetRole",
        "organizations:ListAccounts",
        "route53:GetHostedZone",
        "cloudfront:GetDistribution",
    ] {
        assert!(action(name).any_region, "{name}");
    }
    for name in [
        "waf:GetWebACL",
        "support:DescribeCases",
        "s3:ListAllMyBuckets",
        "globalaccelerator:ListAccelerators",
    ] {
        assert!(action(name).any_region, "{name}");
    }
    for name in [
        "s3:GetObject",
        "ec2:DescribeInstances",
        "sts:AssumeRole",
        "kms:Decrypt",
        "wafv2:GetWebACL",
    ] {
        assert!(!action(name).any_region, "{name}");
    }
}
