/* Schedulers, one program each; a long list is looked at SCAN_STEP members a run. */
#define SCHEDULE_AGAIN (-1)

/* Where rr and wrr stand: generation, place of the last pick + 1 (0: the head), wrr's weight. */
#define CURSOR(generation, position, weight) \
	((u64)(generation) << 48 | (u64)((position)&0xffff) << 32 | (u32)(weight))
#define CURSOR_GENERATION(cursor) ((u32)((cursor) >> 48))
#define CURSOR_POSITION(cursor) ((u32)((cursor) >> 32) & 0xffff)
#define CURSOR_WEIGHT(cursor) ((u32)(cursor))

/* The member at a place in the list, or NULL past its end. */
static __always_inline struct member *schedule_member(struct service_config *config, u32 place)
{
	u32 index = config->list_offset + place;

	return place < config->list_length ? ROW(members, index) : NULL;
}

/* The member may get new connections. */
static __always_inline bool schedule_is_usable(struct member *member)
{
	return member->weight && !limit_is_reached(member->backend);
}

/* Takes the member at this place: its backend with the generation that it has now. */
static __always_inline int schedule_take(struct journey *journey, struct service_config *config,
					 u32 place)
{
	struct member *member = schedule_member(config, place);
	u64 word;
	u32 id;

	if (!member)
		return REASON_NO_BACKEND;
	id = member->backend;
	word = READ_ONCE(ROW(backends, id)->word);
	if (!(word & BACKEND_PRESENT))
		return REASON_NO_BACKEND;
	journey->backend = (word >> 32) << 32 | id;
	return REASON_OK;
}

/* The cursor as it is, or as the control plane set it where the service has changed since. */
static __always_inline u64 schedule_cursor(struct service_config *config, u64 cursor)
{
	if (CURSOR_GENERATION(cursor) == (config->generation & 0xffff))
		return cursor;
	return CURSOR(config->generation, config->cursor_position, config->cursor_weight);
}

/* Moves the cursor on; starts over where another CPU has moved it meanwhile. */
static __always_inline int schedule_advance(struct journey *journey, struct service_config *config,
					    u32 place, u32 weight)
{
	u64 *cursor = ROW(service_cursors, journey->service);
	u64 next = CURSOR(config->generation, place + 1, weight);

	if (__sync_val_compare_and_swap(cursor, journey->cursor, next) == journey->cursor)
		return schedule_take(journey, config, place);
	journey->scan = 0;
	if (journey->attempts++ < DECISION_ATTEMPTS)
		return SCHEDULE_AGAIN;
	return schedule_take(journey, config, place);
}

/* Reads the cursor when a scan begins. */
static __always_inline void schedule_begin_round(struct journey *journey)
{
	if (journey->scan)
		return;
	journey->cursor = READ_ONCE(*ROW(service_cursors, journey->service));
	journey->best = 0;
	journey->best_weight = 0;
	journey->next = 0;
}

/*
 * The place so many after another, round the list.  Through memory: what the verifier knows of one
 * place it need not follow into the next.
 */
static __always_inline u32 schedule_round(struct journey *journey, struct service_config *config,
					  u32 place)
{
	WRITE_ONCE(journey->turn,
		   place < config->list_length ? place : place - config->list_length);
	return READ_ONCE(journey->turn);
}

/* rr: the next usable member after the last pick. */
static __always_inline int schedule_rr(struct journey *journey, struct service_config *config)
{
	u32 start, place;
	struct member *member;

	schedule_begin_round(journey);
	start = CURSOR_POSITION(schedule_cursor(config, journey->cursor)) + journey->scan;
	for (u32 i = 0; i < SCAN_STEP; i++) {
		if (journey->scan + i >= config->list_length)
			return REASON_NO_BACKEND;
		place = schedule_round(journey, config, start + i);
		member = schedule_member(config, place);
		if (member && schedule_is_usable(member))
			return schedule_advance(journey, config, place, 0);
	}
	journey->scan += SCAN_STEP;
	return SCHEDULE_AGAIN;
}

/* wrr: the weight that the next round asks for. */
static __always_inline u32 schedule_wrr_fall(struct service_config *config, u32 weight)
{
	return weight > config->weight_step ? weight - config->weight_step : config->weight_max;
}

/*
 * wrr: nobody is usable.  IPVS's walk has then gone round, and stands at the head with the first
 * round before it; but where it began in the middle of a last round it stands where it began.
 */
static __always_inline int schedule_wrr_fail(struct journey *journey, struct service_config *config,
					     u32 start, u32 weight)
{
	u64 over = CURSOR(config->generation, 0, config->weight_max);

	if (!start || weight > config->weight_step)
		word_change(ROW(service_cursors, journey->service), journey->cursor, over);
	return REASON_NO_BACKEND;
}

/*
 * wrr: nobody after the last pick reached the round's weight, so it falls by steps until somebody
 * does.  Either one step is enough; or nobody reaches that, and then it falls as far as the greatest
 * weight, which alone reaches it there, as weights are multiples of the step.
 */
static __always_inline int schedule_wrr_turn(struct journey *journey, struct service_config *config,
					     u32 start, u32 weight)
{
	u32 lower = schedule_wrr_fall(config, weight), step = config->weight_step, steps;

	if (journey->next)
		return schedule_advance(journey, config, journey->next - 1, lower);
	if (!journey->best)
		return schedule_wrr_fail(journey, config, start, weight);
	steps = (lower - journey->best_weight + step - 1) / step;
	return schedule_advance(journey, config, journey->best - 1, lower - steps * step);
}

/* Notes a usable member for when the round's weight has fallen: the first that a step is enough for,
 * and the first of the greatest weight. */
static __always_inline void schedule_wrr_note(struct journey *journey, u32 place, u32 weight,
					      u32 lower)
{
	if (!journey->next && weight >= lower)
		journey->next = place + 1;
	if (weight <= journey->best_weight)
		return;
	journey->best = place + 1;
	journey->best_weight = weight;
}

/*
 * wrr: the first member after the last pick whose weight reaches the round's; else the first from
 * the head that reaches a later round's.  IPVS walks the list once a round, however many rounds;
 * here one walk notes what all of them would find.
 */
static __always_inline int schedule_wrr(struct journey *journey, struct service_config *config)
{
	u32 start, weight, lower, place;
	struct member *member;
	u64 cursor;

	if (!config->weight_max)
		return REASON_NO_BACKEND;
	schedule_begin_round(journey);
	cursor = schedule_cursor(config, journey->cursor);
	start = CURSOR_POSITION(cursor);
	weight = CURSOR_WEIGHT(cursor);
	lower = schedule_wrr_fall(config, weight);
	for (u32 i = 0; i < SCAN_STEP; i++) {
		place = journey->scan + i;
		member = schedule_member(config, place);
		if (!member)
			return schedule_wrr_turn(journey, config, start, weight);
		if (!schedule_is_usable(member))
			continue;
		if (place >= start && member->weight >= weight)
			return schedule_advance(journey, config, place, weight);
		schedule_wrr_note(journey, place, member->weight, lower);
	}
	journey->scan += SCAN_STEP;
	return SCHEDULE_AGAIN;
}
