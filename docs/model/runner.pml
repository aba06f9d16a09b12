/* The ledger's protocol, small enough to be checked exhaustively: two runners, what they leave behind in PostgreSQL and
 * on the topic, and the processes and people that start them, stop them and report their deaths. README.md maps it to
 * the SQL.
 *
 * Each verb is one atomic step, as it is one transaction. A process that waits between two steps stands for a
 * slow one, a paused one, and one behind a partition. -DFRAMES=3 frames are to be stored; -DSPARE=1 is how many faults there
 * may be that no counter limits, and -DMAX_EPOCHS=3 how many attempts, 255 being no limit for either; -DWITHOUT=GUARD
 * takes out one of the guards that are listed here. */
#ifndef WITHOUT
#define WITHOUT NOTHING
#endif
#define MAX_FAILURES 2
#define has(guard, condition) (WITHOUT == guard || (condition))

mtype = { NOTHING, EPOCH_FENCE, INSTANCE_FENCE, FRAME_FENCE, TOTAL_IN_FINISH, ONE_CLAIM, EPOCH_IN_CLAIM,
    OUTCOME_IN_CLAIM, STATUS_IN_CLAIM, EPOCH_IN_FAIL, INSTANCE_IN_FAIL, OUTCOME_IN_FAIL, STATUS_IN_FAIL, LEASE_IN_REAP,
    OUTCOME_IN_RETRY, INSTANCE_IN_SHUTDOWNS, REAPER, SPAWN_LEASE_END, REPORT_OF_UNCLAIMED, FAILURE_COUNT, EPOCH_COUNT,
    PROGRESS_IN_EPOCH_COUNT }
mtype = { CLAIM, STORE, FINISH }                           /* verbs that are sent, NOTHING being none */
mtype = { OK, REFUSED, MISPLACED, LOST }                   /* results: MISPLACED is RN007, REFUSED every other RN00x */
mtype = { RUNNER, HOST, EVENT, LEASE, RETRIABLE, PERMANENT, INTERRUPTED } /* who reports a death, and its classes */
mtype = { ABSENT, WORKING, DYING }                         /* stages of a process */
mtype = { TO_RUN, TO_STOP, STOPPED, OPEN, COMPLETED, FAILED } /* statuses, in short, and outcomes, OPEN being NULL */
/* An epoch's number is not kept: the protocol asks only whether it is the row's, and how many more there may be. */
mtype = { NONE, NOW, PAST }
/* Instances are numbered by their places; a place is given away again when nothing more can come from the process before. */
#define NOBODY 0

/* The scenario's row; `spawning` is the spawn lease, `progressed` is next_frame > first_frame of this attempt, `left`
 * is last_epoch - epoch + 1. */
byte instance = NOBODY, next_frame = 0, failures = 0, left = MAX_EPOCHS;
bool leased, spawning, progressed;
mtype status = TO_RUN, outcome = OPEN;
/* The table predictions, and what else the assertions look at. */
bool stored[FRAMES], claimed, was_stopped;
byte fruitless = 0;
/* The processes: the epoch they were started for (NONE: by hand), the epoch and the frame they believe they are at. */
mtype stage[2] = ABSENT, asked[2] = NONE, mine[2] = NONE;
byte at[2];
/* One statement that its sender has given up and that PostgreSQL executes all the same, perhaps after its death. */
mtype late = NOTHING, late_epoch = NONE;
byte late_instance, late_at;
/* The topic's last event: who died. It may be read never, once or again, at any time. */
mtype event_epoch = NONE;
byte event_instance;
byte spare = SPARE;
mtype result = OK;                                         /* of the step that is under way */

inline spend() { spare = (spare == 255 -> spare : spare - 1) }
inline ages(e) { e = (e == NOW -> PAST : e) }
inline gone(k) { stage[k] = ABSENT; asked[k] = NONE; mine[k] = NONE; at[k] = 0 }
inline refuse(e, i) { result = (e == NOW && i == instance -> MISPLACED : REFUSED) }

inline claim(e, i) {
    if
    :: instance == i -> result = OK                        /* it has the claim: the first reply was lost */
    :: instance != i && has(ONE_CLAIM, instance == NOBODY) && has(EPOCH_IN_CLAIM, e == NONE || e == NOW) &&
       has(OUTCOME_IN_CLAIM, outcome == OPEN) && has(STATUS_IN_CLAIM, status == TO_RUN) ->
        assert(outcome == OPEN);                           /* what has ended stays ended */
        assert(!was_stopped);                              /* what was stopped stays stopped */
        assert(e == NONE || e == NOW);                     /* a stale start changes nothing */
        assert(!claimed);                                  /* one owner per epoch */
        claimed = true; instance = i; leased = true; progressed = false; result = OK
    :: else -> result = REFUSED
    fi;
    printf("runner %d: claim(epoch %e) %e\n", i, e, result)
}

inline store(e, i, f) {
    if
    :: has(EPOCH_FENCE, e == NOW) && has(INSTANCE_FENCE, i == instance) && has(FRAME_FENCE, f == next_frame) ->
        assert(e == NOW && i == instance);                 /* only the epoch's owner stores anything */
        assert(outcome == OPEN);                           /* what has ended stays ended */
        assert(!was_stopped);                              /* what was stopped stays stopped */
        assert(!stored[f]);                                /* no frame twice */
        assert(f == 0 || stored[f - 1]);                   /* no frame skipped */
        stored[f] = true; next_frame = f + 1; progressed = true; leased = true; result = OK
    :: else -> refuse(e, i)
    fi;
    printf("runner %d: store(epoch %e, frame %d) %e\n", i, e, f, result)
}

inline heartbeat(e, i) {
    if
    :: has(EPOCH_FENCE, e == NOW) && has(INSTANCE_FENCE, i == instance) -> leased = true; result = OK
    :: else -> refuse(e, i)
    fi;
    printf("runner %d: heartbeat(epoch %e) %e\n", i, e, result)
}

inline finish(e, i) {
    if
    :: has(EPOCH_FENCE, e == NOW) && has(INSTANCE_FENCE, i == instance) && has(TOTAL_IN_FINISH, next_frame == FRAMES) ->
        assert(e == NOW && i == instance);
        assert(outcome == OPEN);                           /* what has ended stays ended */
        assert(stored[FRAMES - 1]);                        /* completed only with every frame stored */
        outcome = COMPLETED; failures = 0; fruitless = 0; instance = NOBODY; leased = false; result = OK
    :: else -> refuse(e, i)
    fi;
    printf("runner %d: finish(epoch %e) %e\n", i, e, result)
}

inline fail(reporter, e, i, class) {
    if
    :: has(OUTCOME_IN_FAIL, outcome == OPEN) && has(EPOCH_IN_FAIL, e == NOW) && has(INSTANCE_IN_FAIL, i == instance) ->
        printf("reported by %e: fail(epoch %e, instance %d, %e) ends %d\n", reporter, e, i, class, instance);
        assert(outcome == OPEN);                           /* what has ended stays ended */
        assert(e == NOW);                                  /* an epoch ends with one report, and that is its own */
        assert(!leased || stage[instance - 1] != WORKING); /* a stale report changes nothing */
        failures = (class == INTERRUPTED -> failures : (progressed -> 0 : failures + (WITHOUT != FAILURE_COUNT)));
        left = (left == 255 || WITHOUT == EPOCH_COUNT || progressed && WITHOUT != PROGRESS_IN_EPOCH_COUNT -> left : left - 1);
        outcome = (class == PERMANENT || failures >= MAX_FAILURES || left == 0 -> FAILED : OPEN);
        fruitless = (class == INTERRUPTED -> fruitless : (progressed -> 0 : fruitless + 1));
        assert(outcome == FAILED || fruitless < MAX_FAILURES); /* poison is given up in time */
        assert(outcome == OPEN || class == PERMANENT || !progressed); /* who stored a frame does not count towards giving up */
        status = (WITHOUT == STATUS_IN_FAIL && status == STOPPED -> TO_RUN : status);
        instance = NOBODY; leased = false; spawning = false; progressed = false; claimed = false;
        ages(asked[0]); ages(asked[1]); ages(mine[0]); ages(mine[1]); ages(late_epoch); ages(event_epoch)
    :: else -> printf("reported by %e: fail(epoch %e, instance %d): nothing to record\n", reporter, e, i)
    fi
}

inline report(reporter, e, i) {
    if
    :: true -> fail(reporter, e, i, RETRIABLE)
    :: true -> fail(reporter, e, i, PERMANENT)
    :: true -> fail(reporter, e, i, INTERRUPTED)
    fi
}

#define is_free(k) (stage[k] == ABSENT && instance != k + 1 && late_instance != k + 1)
#define can_start (is_free(0) || is_free(1))
inline start(e) {
    k = (is_free(0) -> 0 : 1); stage[k] = WORKING; asked[k] = e;
    if :: event_instance == k + 1 -> event_epoch = NONE; event_instance = NOBODY :: else fi;
    printf("runner %d: started for epoch %e\n", k + 1, e); k = 0
}

inline execute(verb, e, i, f) {
    if :: verb == CLAIM -> claim(e, i) :: verb == STORE -> store(e, i, f) :: verb == FINISH -> finish(e, i) fi
}

/* How a statement ends, and which reply its sender gets. Our runner dies when a reply is lost. This one may also repeat
 * the statement or take it for done, so that the ledger alone has to keep things right. */
inline call(verb, e) {
    if
    :: true -> execute(verb, e, me + 1, at[me])
    :: true -> execute(verb, e, me + 1, at[me]); result = LOST
    :: late == NOTHING -> late = verb; late_epoch = e; late_instance = me + 1; late_at = at[me]; result = LOST
    :: result = LOST
    fi;
    if
    :: result != LOST
    :: result == LOST -> stage[me] = DYING; printf("runner %d: no reply to %e: dies\n", me + 1, verb)
    :: result == LOST && spare -> spend(); printf("runner %d: no reply to %e: repeats it\n", me + 1, verb)
    :: result == LOST && spare -> spend(); printf("runner %d: no reply to %e: goes on\n", me + 1, verb); result = OK
    fi;
    if
    :: result == OK && verb == CLAIM -> mine[me] = (e == NONE -> NOW : e); at[me] = next_frame
    :: result == OK && verb == STORE -> at[me]++
    :: result == MISPLACED -> stage[me] = DYING
    :: result == OK && verb == FINISH || result == REFUSED -> gone(me) /* exit 0; exit 79: nothing is owed */
    :: result == LOST
    fi;
    result = OK
}

active [2] proctype runner() {
    byte me = _pid;
    mtype next = NOTHING, e = NONE;
end: do
    :: atomic { stage[me] == WORKING ->
        next = (mine[me] == NONE -> CLAIM : (at[me] < FRAMES -> STORE : FINISH));
        e = (next == CLAIM -> asked[me] : mine[me]);
        call(next, e); next = NOTHING; e = NONE }
    :: atomic { stage[me] == WORKING -> stage[me] = DYING; printf("runner %d: dies\n", me + 1) }
    :: atomic { stage[me] == DYING && mine[me] == NONE ->  /* it claims, so that its death has an epoch */
        claim(asked[me], me + 1); if :: result == OK -> mine[me] = NOW :: else -> gone(me) fi; result = OK }
    :: atomic { stage[me] == DYING && mine[me] != NONE ->
        if :: true -> report(RUNNER, mine[me], me + 1) :: true fi; /* it was killed: its lease ends */
        if :: event_epoch = mine[me]; event_instance = me + 1 :: true fi;
        gone(me) }
    :: atomic { stage[me] == DYING && mine[me] == NONE ->  /* killed, or the ledger was out of reach */
        if
        :: asked[me] != NONE && WITHOUT != REPORT_OF_UNCLAIMED ->
            report(HOST, asked[me], NOBODY);
            if :: event_epoch = asked[me]; event_instance = NOBODY :: true fi
        :: asked[me] == NONE || WITHOUT == REPORT_OF_UNCLAIMED
        :: spare -> spend(); printf("runner %d: its host dies too\n", me + 1)
        fi;
        gone(me) }
    od
}

#define beats(k) (stage[k] == WORKING && mine[k] != NONE)
active proctype lease_tasks() {
    byte k;
end: do
    :: atomic { !leased && (beats(0) || beats(1)) ->
        if :: beats(0) -> k = 0 :: beats(1) -> k = 1 fi;
        heartbeat(mine[k], k + 1);
        if :: result == REFUSED -> gone(k) :: else fi;
        result = OK; k = 0 }
    od
}

active proctype database() {
end: do
    :: atomic { late != NOTHING ->
        printf("the statement that hung is executed:\n"); execute(late, late_epoch, late_instance, late_at);
        result = OK; late = NOTHING; late_epoch = NONE; late_instance = NOBODY; late_at = 0 }
    od
}

active proctype clock() {                                  /* a lease may end at any moment, however young */
end: do
    :: atomic { leased -> leased = false; printf("the lease of %d ends\n", instance) }
    :: atomic { spawning && WITHOUT != SPAWN_LEASE_END -> spawning = false }
    od
}

active proctype reaper() {                                 /* and the start by hand that takes a claim over */
    byte found = NOBODY;
end: do
    :: atomic { instance != NOBODY && !leased && found == NOBODY && WITHOUT != REAPER ->
        found = instance; printf("the reaper has found %d\n", found);
        if :: WITHOUT != LEASE_IN_REAP -> fail(LEASE, NOW, found, RETRIABLE); found = NOBODY :: else fi }
    :: atomic { found != NOBODY -> fail(LEASE, NOW, found, RETRIABLE); found = NOBODY }
    od
}

active proctype orchestrator() {                           /* any number of them */
    byte k;
end: do
    :: atomic { outcome == OPEN && status == TO_RUN && instance == NOBODY && !spawning && can_start ->
        spawning = true;
        if :: true -> start(NOW) :: spare -> spend(); printf("the orchestrator dies between due and spawn\n") fi }
    :: atomic { status == TO_STOP && has(INSTANCE_IN_SHUTDOWNS, instance == NOBODY) ->
        status = STOPPED; was_stopped = true; printf("stopped\n") }
    od
}

active proctype consumer() {                               /* of the topic; also the orchestrator's */
end: do
    :: atomic { event_epoch != NONE ->
        report(EVENT, event_epoch, event_instance); if :: true :: event_epoch = NONE; event_instance = NOBODY fi }
    od
}

active proctype person() {
    byte k;
end: do
    :: atomic { spare && can_start -> spend(); start(NONE) }
    :: atomic { spare && status == TO_RUN && outcome == OPEN -> spend(); status = TO_STOP; printf("stop it\n") }
    :: atomic { spare && status != TO_RUN && outcome == OPEN -> /* submit, or retry */
        spend(); status = TO_RUN; was_stopped = false; printf("go on with it\n") }
    :: atomic { spare && outcome != OPEN && has(OUTCOME_IN_RETRY, outcome == FAILED) ->
        assert(outcome == FAILED);                         /* completed is completed */
        spend(); outcome = OPEN; status = TO_RUN; was_stopped = false; failures = 0; fruitless = 0; left = MAX_EPOCHS;
        printf("retry it\n") }
    od
}

#ifdef LIVENESS
ltl ends { <> (outcome != OPEN || status == STOPPED) }
#endif
