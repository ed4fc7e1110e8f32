use expect_test::{Expect, expect};

use super::super::samples;
use super::*;
use crate::cli::Exit;

fn check(cluster: &EtcdCluster, exit: Exit, expected: Expect) {
    expected.assert_eq(&picture(cluster, &samples::look()));
    assert_eq!(judge(cluster).exit(), exit);
}

#[test]
fn healthy() {
    check(
        &samples::healthy(),
        Exit::Done,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● HEALTHY - serving, can lose 1 member
            Quorum    ■ ■ ■  3/3 voters healthy, quorum 2, can lose 1
            Leader    main-1 (term 12)      Revision 18,233,412
            DB        ██░░░░░░░░░░░░░░░░░░░░░░  212Mi of 2Gi quota (10 %)
            Spec      up to date      Certificates ok

            MEMBER  ROLE      HEALTH  NODE      VERSION  DB
            main-0  follower  ok      worker-1  3.6.16   212Mi
            main-1  leader    ok      worker-2  3.6.16   212Mi
            main-2  follower  ok      worker-3  3.6.16   212Mi

            What now  Nothing to do.
        "#]],
    );
}

#[test]
fn a_single_member_is_healthy_by_choice() {
    check(
        &samples::single(),
        Exit::Done,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● HEALTHY - serving, a single member
            Quorum    ■  1/1 voters healthy, quorum 1, can lose 0
            Leader    main-0 (term 12)      Revision 18,233,412
            DB        ██░░░░░░░░░░░░░░░░░░░░░░  212Mi of 2Gi quota (10 %)
            Spec      up to date      Certificates ok

            MEMBER  ROLE    HEALTH  NODE      VERSION  DB
            main-0  leader  ok      worker-1  3.6.16   212Mi

            What now  Nothing to do.
        "#]],
    );
}

#[test]
fn one_member_down() {
    check(
        &samples::degraded(),
        Exit::Degraded,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● DEGRADED - serving, one failure from outage
            Quorum    ■ ■ □  2/3 voters healthy, quorum 2, can lose 0
            Leader    main-1 (term 12)      Revision 18,233,412
            DB        ████████████████████░░░░  1.7Gi of 2Gi quota (85 %)
            Spec      up to date      Certificates ok

            MEMBER  ROLE      HEALTH         NODE      VERSION  DB
            main-0  follower  ok             worker-1  3.6.16   212Mi
            main-1  leader    ok             worker-2  3.6.16   212Mi
            main-2  -         Unschedulable  worker-3  -        -      0/3 nodes have room

            Also      OneFailureFromOutage: 2 of 3 voters are healthy: one more failure costs quorum. (12m)
            What now  MemberDown: main-2 is down since its node has no room for it. The operator waits for the node. Free memory on worker-3. (12m)
                      More: kubectl quorate explain MemberDown
        "#]],
    );
}

#[test]
fn quorum_lost() {
    check(
        &samples::quorum_lost(),
        Exit::Unavailable,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● UNAVAILABLE - quorum lost
            Quorum    ■ □ □  1/3 voters healthy, quorum 2, 1 short
            Leader    none (term 12)      Revision 18,233,412
            DB        ██░░░░░░░░░░░░░░░░░░░░░░  212Mi of 2Gi quota (10 %)
            Alarms    NOSPACE main-0
            Spec      up to date      Certificates ok

            MEMBER  ROLE  HEALTH      NODE      VERSION  DB
            main-0  -     ok          worker-1  3.6.16   212Mi
            main-1  -     DataLost    worker-3  -        -      the volume is empty
            main-2  -     MemberDown  worker-3  -        -      dial tcp 10.0.3.7:2379: i/o timeout

            Also      DataLost: main-1's volume lost its data. (12m)
            What now  QuorumLost: 1 of 3 voters answers (main-0), 2 are needed. Nothing is changed automatically. Bring back the node of main-2. (12m)
                      More: kubectl quorate explain QuorumLost
        "#]],
    );
}

#[test]
fn data_lost_stalls() {
    check(
        &samples::stalled(),
        Exit::Unavailable,
        expect![[r#"
        main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● STALLED - a member's data is gone; a person is needed
        Quorum    □ □ □  0/3 voters healthy, quorum 2, 2 short
        Spec      up to date      Certificates ok

        MEMBER  ROLE  HEALTH    NODE      VERSION  DB
        main-0  -     DataLost  worker-3  -        -   the volume is empty
        main-1  -     DataLost  worker-3  -        -   the volume is empty
        main-2  -     DataLost  worker-3  -        -   the volume is empty

        What now  DataLost: The volumes of main-0, main-1 and main-2 hold no data any more. Nothing is started empty. Restore a backup into a new EtcdCluster. (12m)
                  More: kubectl quorate explain DataLost
    "#]],
    );
}

#[test]
fn bootstrapping() {
    check(
        &samples::bootstrapping(),
        Exit::Unavailable,
        expect![[r#"
        main (default)  3.6.16  40d  ● STARTING - first start, 0 of 3 members healthy
        Quorum    □ □ □  0/3 voters healthy, quorum 2, 2 short
        Spec      up to date      Certificates ok

        MEMBER  ROLE  HEALTH         NODE      VERSION  DB
        main-0  -     Bootstrapping  worker-1  -        -
        main-1  -     Bootstrapping  worker-2  -        -   pulling the image
        main-2  -     Bootstrapping  -         -        -   waiting for a node

        What now  Bootstrapping: Three members start for the first time: main-1 pulls its image, main-2 waits for a node. (12m)
                  More: kubectl quorate explain Bootstrapping
    "#]],
    );
}

#[test]
fn paused() {
    check(
        &samples::paused(),
        Exit::Done,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● PAUSED - serving, the operator changes nothing
            Quorum    ■ ■ ■  3/3 voters healthy, quorum 2, can lose 1
            Leader    main-1 (term 12)      Revision 18,233,412
            DB        ██░░░░░░░░░░░░░░░░░░░░░░  212Mi of 2Gi quota (10 %)
            Spec      up to date      Certificates ok

            MEMBER  ROLE      HEALTH  NODE      VERSION  DB
            main-0  follower  ok      worker-1  3.6.16   212Mi
            main-1  leader    ok      worker-2  3.6.16   212Mi
            main-2  follower  ok      worker-3  3.6.16   212Mi

            What now  PausedByUser: spec.paused is true: the operator looks on but changes nothing. Set it to false to go on. (12m)
                      More: kubectl quorate explain PausedByUser
        "#]],
    );
}

#[test]
fn just_created() {
    check(
        &samples::just_created(),
        Exit::Unavailable,
        expect![[r#"
        main (default)  3.6  40d  ● PENDING - the operator has not looked at it yet

        What now  Wait a few seconds. If it stays like this, the operator is not running: kubectl get deployments -A -l app.kubernetes.io/name=quorate
    "#]],
    );
}

#[test]
fn a_learner_a_newer_spec_and_hostile_text() {
    check(
        &samples::odd(),
        Exit::Done,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● HEALTHY - serving, a single member
            Quorum    ■ ◇  1/1 voters healthy, quorum 1, can lose 0, 1 learner
            Leader    main-1 (term 12)      Revision 18,233,412
            DB        plenty
            Spec      changed, not seen by the operator yet      Certificates ok

            MEMBER  ROLE     HEALTH   NODE      VERSION  DB
            main-0  leader   ok       worker-1  3.6.16   212Mi
            main-3  learner  Joining  -         3.6.16   -       [2Jcatching up 64 %

            Also      NewThing: FromTheFuture is False. (12m)
            What now  RollOutPending: resources changed; they apply to new Pods. (12m)
                      More: kubectl quorate explain RollOutPending
        "#]],
    );
}

#[test]
fn being_deleted() {
    let mut cluster = samples::healthy();
    cluster.metadata.deletion_timestamp = cluster.metadata.creation_timestamp.clone();
    check(
        &cluster,
        Exit::Degraded,
        expect![[r#"
            main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● DELETING - being deleted
            Quorum    ■ ■ ■  3/3 voters healthy, quorum 2, can lose 1
            Leader    main-1 (term 12)      Revision 18,233,412
            DB        ██░░░░░░░░░░░░░░░░░░░░░░  212Mi of 2Gi quota (10 %)
            Spec      up to date      Certificates ok

            MEMBER  ROLE      HEALTH  NODE      VERSION  DB
            main-0  follower  ok      worker-1  3.6.16   212Mi
            main-1  leader    ok      worker-2  3.6.16   212Mi
            main-2  follower  ok      worker-3  3.6.16   212Mi

            What now  Nothing: it is being deleted.
        "#]],
    );
}

#[test]
fn in_ascii() {
    let look = Look { ascii: true, ..samples::look() };
    let text = picture(&samples::degraded(), &look);
    assert!(text.is_ascii(), "{text}");
    expect![[r#"
        main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  * DEGRADED - serving, one failure from outage
        Quorum    # # .  2/3 voters healthy, quorum 2, can lose 0
        Leader    main-1 (term 12)      Revision 18,233,412
        DB        ####################----  1.7Gi of 2Gi quota (85 %)
        Spec      up to date      Certificates ok

        MEMBER  ROLE      HEALTH         NODE      VERSION  DB
        main-0  follower  ok             worker-1  3.6.16   212Mi
        main-1  leader    ok             worker-2  3.6.16   212Mi
        main-2  -         Unschedulable  worker-3  -        -      0/3 nodes have room

        Also      OneFailureFromOutage: 2 of 3 voters are healthy: one more failure costs quorum. (12m)
        What now  MemberDown: main-2 is down since its node has no room for it. The operator waits for the node. Free memory on worker-3. (12m)
                  More: kubectl quorate explain MemberDown
    "#]].assert_eq(&text);
}

#[test]
fn in_colour() {
    let look = Look { color: true, ..samples::look() };
    expect![[r#"
        ESC[1mmainESC[0m (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ESC[33m● DEGRADEDESC[0m - serving, one failure from outage
        Quorum    ESC[32m■ESC[0m ESC[32m■ESC[0m ESC[31m□ESC[0m  2/3 voters healthy, quorum 2, can lose 0
        Leader    main-1 (term 12)      Revision 18,233,412
        DB        ESC[33m████████████████████ESC[0mESC[2m░░░░ESC[0m  1.7Gi of 2Gi quota (85 %)
        Spec      up to date      Certificates ok

        ESC[2mMEMBERESC[0m  ESC[2mROLEESC[0m      ESC[2mHEALTHESC[0m         ESC[2mNODEESC[0m      ESC[2mVERSIONESC[0m  ESC[2mDBESC[0m
        main-0  follower  ESC[32mokESC[0m             worker-1  3.6.16   212Mi
        main-1  leader    ESC[32mokESC[0m             worker-2  3.6.16   212Mi
        main-2  ESC[2m-ESC[0m         ESC[31mUnschedulableESC[0m  worker-3  ESC[2m-ESC[0m        ESC[2m-ESC[0m      0/3 nodes have room

        Also      OneFailureFromOutage: 2 of 3 voters are healthy: one more failure costs quorum. (12m)
        What now  MemberDown: main-2 is down since its node has no room for it. The operator waits for the node. Free memory on worker-3. (12m)
                  ESC[2mMore: kubectl quorate explain MemberDownESC[0m
    "#]].assert_eq(&picture(&samples::degraded(), &look).replace('\u{1b}', "ESC"));
}

#[test]
fn colour_changes_no_alignment() {
    let plain = picture(&samples::quorum_lost(), &samples::look());
    let mut colored = picture(&samples::quorum_lost(), &Look { color: true, ..samples::look() });
    for code in ["0", "1", "2", "31", "32", "33"] {
        colored = colored.replace(&format!("\u{1b}[{code}m"), "");
    }
    assert_eq!(plain, colored);
}

#[test]
fn on_a_narrow_terminal() {
    let look = Look { width: Some(100), ..samples::look() };
    expect![[r#"
        main (default)  3.6.16  cluster 3f2a9c01be77d0e4  40d  ● UNAVAILABLE - quorum lost
        Quorum    ■ □ □  1/3 voters healthy, quorum 2, 1 short
        Leader    none (term 12)      Revision 18,233,412
        DB        ██░░░░░░░░░░░░░░░░░░░░░░  212Mi of 2Gi quota (10 %)
        Alarms    NOSPACE main-0
        Spec      up to date      Certificates ok

        MEMBER  ROLE  HEALTH      NODE      VERSION  DB
        main-0  -     ok          worker-1  3.6.16   212Mi
        main-1  -     DataLost    worker-3  -        -      the volume is empty
        main-2  -     MemberDown  worker-3  -        -      dial tcp 10.0.3.7:2379: i/o timeout

        Also      DataLost: main-1's volume lost its data. (12m)
        What now  QuorumLost: 1 of 3 voters answers (main-0), 2 are needed. Nothing is changed
                  automatically. Bring back the node of main-2. (12m)
                  More: kubectl quorate explain QuorumLost
    "#]]
    .assert_eq(&picture(&samples::quorum_lost(), &look));
}

#[test]
fn many_clusters_worst_first() {
    let mut clusters =
        vec![samples::healthy(), samples::degraded(), samples::quorum_lost(), samples::just_created()];
    for (cluster, name) in clusters.iter_mut().zip(["alpha", "beta", "gamma", "delta"]) {
        cluster.metadata.name = Some(name.to_owned());
    }
    expect![[r#"
        NAMESPACE  NAME   STATE        MEMBERS  LEADER  VERSION  DB         AGE  WHAT
        default    gamma  UNAVAILABLE  1/3      -       3.6.16   212Mi/2Gi  40d  quorum lost
        default    delta  PENDING      -        -       3.6      -          40d  the operator has not looked at it yet
        default    beta   DEGRADED     2/3      main-1  3.6.16   1.7Gi/2Gi  40d  serving, one failure from outage
        default    alpha  HEALTHY      3/3      main-1  3.6.16   212Mi/2Gi  40d  serving, can lose 1 member
    "#]].assert_eq(&overview(&clusters, true, &samples::look()));
    expect![[r#"
        NAME   STATE     MEMBERS  LEADER  VERSION  DB         AGE  WHAT
        beta   DEGRADED  2/3      main-1  3.6.16   1.7Gi/2Gi  40d  serving, one failure from outage
        alpha  HEALTHY   3/3      main-1  3.6.16   212Mi/2Gi  40d  serving, can lose 1 member
    "#]]
    .assert_eq(&overview(&clusters[..2], false, &samples::look()));
}

#[test]
fn a_change_in_one_line() {
    expect!["default/main DEGRADED - serving, one failure from outage. MemberDown: main-2 is down since its node has no room for it. The operator waits for the node. Free memory on worker-3."].assert_eq(&line(&samples::degraded()));
    expect!["default/main HEALTHY - serving, can lose 1 member"].assert_eq(&line(&samples::healthy()));
}
